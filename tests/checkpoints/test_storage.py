"""Rot, full disks, killed processes: a good checkpoint is always found again."""

import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
import torch
from crafted import saved

from model_compound_scaling.checkpoints.atomic_save import (
    has_generation,
    previous_path,
    read_file,
    read_generation,
    write_file,
    write_generation,
)
from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError

pytestmark = pytest.mark.faults


def flip(raw, rng):
    return flipped(raw, rng.randrange(8 * len(raw)))


def flipped(raw, bit):
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.fixture
def two_generations(tmp_path, make_content):
    path = tmp_path / "last.pt"
    write_generation(make_content(1), path)
    write_generation(make_content(2), path)
    return path


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_rot_is_detected_and_survived(two_generations, number_of, full, damage):
    """Or harmless, as in the padding between entries: what is read is the same then."""
    path, rng = two_generations, random.Random(0)
    raw, known = path.read_bytes(), saved(read_file(path))
    count, detected = {"flip": (200, 1000), "cut": (20, 100)}[damage][full], 0
    for _ in range(count):
        path.write_bytes(flip(raw, rng) if damage == "flip" else raw[: rng.randrange(len(raw))])
        content, file, skipped = read_generation(path)
        try:
            assert saved(read_file(path)) == saved(content) == known
            assert file == path and not skipped
        except CheckpointError as error:
            detected += 1
            assert error.exit_code == 5 and "\n" not in str(error)
            assert number_of(content) == 1 and file == previous_path(path)
            assert len(skipped) == 1 and skipped[0].startswith("last.pt skipped: it ")
    assert detected == count if damage == "cut" else detected > count / 2


def test_every_bit_is_covered(tmp_path, full):
    """Also those of headers and directory: a CRC-32 is of an entry's values only."""
    path = tmp_path / "net.pt"
    write_file({"number": 1, "a": torch.arange(3), "b": torch.ones(2)}, path)
    raw, known = path.read_bytes(), saved(read_file(path))
    for bit in range(0, 8 * len(raw), 1 if full else 29):
        path.write_bytes(flipped(raw, bit))
        with suppress(CheckpointError):
            assert saved(read_file(path)) == known, bit
    for length in range(0, len(raw), 1 if full else 29):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read_file(path)


def manifest(raw, **edits):
    """What version 0.1 wrote beside each file."""
    return json.dumps({"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), **edits})


@pytest.mark.parametrize(
    "wrong", [manifest(b"another file"), manifest(b"", sha256=None), "", "[]", "[" * 60_000]
)
def test_manifests_of_older_versions_are_ignored(two_generations, number_of, numbers, wrong):
    path = two_generations
    beside = [path.with_name(f"{file}.manifest") for file in ("last.pt", "last.previous.pt")]
    for file in beside:
        file.write_text(wrong)
    content, file, skipped = read_generation(path)
    assert number_of(content) == number_of(read_file(path)) == 2 and file == path and not skipped
    write_generation(content | {"number": 2}, path)
    assert numbers(path) == [2, 2] and [file.read_text() for file in beside] == [wrong] * 2
    beside[0].unlink()  # as a save of version 0.1 that was killed left it
    assert read_generation(path)[1:] == (path, [])


def test_a_damaged_generation_does_not_push_out_a_good_one(two_generations, make_content, numbers):
    path = two_generations
    path.write_bytes(flip(path.read_bytes(), random.Random(0)))
    write_generation(make_content(3), path)
    assert numbers(path) == [3, 1]


def test_without_a_good_generation_each_is_named(two_generations, tmp_path):
    path = two_generations
    for file in (path, previous_path(path)):
        file.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"last\.pt .*last\.previous\.pt ") as error:
        read_generation(path)
    assert error.value.exit_code == 5 and "\n" not in str(error.value)
    other = tmp_path / "other.pt"
    assert has_generation(path) and not has_generation(other)
    with pytest.raises(CheckpointError, match="no such file"):
        read_generation(other)


def test_a_checkpoint_is_one_file_as_torch_saves_it(two_generations, make_content, number_of):
    path = two_generations
    assert {file.name for file in path.parent.iterdir()} == {"last.pt", "last.previous.pt"}
    assert path.read_bytes() == saved(make_content(2))
    assert number_of(torch.load(path, weights_only=True)) == 2


def test_any_whole_file_is_kept_as_the_previous_one(tmp_path, make_content, numbers):
    path = tmp_path / "last.pt"
    path.write_bytes(saved(make_content(1)))  # copied here, say
    write_generation(make_content(2), path)
    assert numbers(path) == [2, 1]


def test_a_file_size_limit_leaves_the_old_checkpoint(
    two_generations, make_content, numbers, fork, full
):
    path = two_generations
    large = make_content(3) | {"large": torch.zeros(50_000)}  # too much for buffers
    size = 200_000
    limits = [0, 1, size, *range(7, size, size // (100 if full else 12))]
    for limit in limits:

        def save(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(DiskError, match=r"cannot write .*last\.pt: File too large"):
                write_generation(large, path)

        assert os.waitpid(fork(save), 0)[1] == 0, limit
        assert numbers(path) == [2, 1], limit
        assert len(list(path.parent.iterdir())) == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_old_checkpoint(small_disk, make_content, numbers):
    path = small_disk / "last.pt"
    for number in (1, 2):
        write_generation(make_content(number), path)
    failed = 0
    for left in range(0, 16 * 1024, 1024):
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1024))
        os.truncate(filler, filler.stat().st_size - left)
        try:
            write_generation(make_content(3), path)
            break
        except DiskError as error:
            assert "No space left on device" in str(error)
            failed += 1
        assert numbers(path) == [2, 1], left
        filler.unlink()
    assert failed > 2 and numbers(path) == [3, 2]


def test_a_vanished_or_forbidden_folder_is_a_disk_error(tmp_path, make_content):
    with pytest.raises(DiskError, match=r"gone/last\.pt: No such file or directory"):
        write_file(make_content(1), tmp_path / "gone" / "last.pt")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Not a directory"):
        write_generation(make_content(1), tmp_path / "file" / "last.pt")


def test_sigkill_of_a_saving_process(tmp_path, make_content, number_of, numbers, fork, full):
    path, rng = tmp_path / "last.pt", random.Random(0)
    write_generation(make_content(0), path)
    newest = 0
    for _ in range(200 if full else 20):
        reader, writer = os.pipe()

        def save_for_ever(first=newest + 1, writer=writer):
            for number in itertools.count(first):
                write_generation(make_content(number), path)
                os.write(writer, number.to_bytes(4, "big"))

        child = fork(save_for_ever)
        os.close(writer)
        done = int.from_bytes(os.read(reader, 4), "big")  # it is at work now
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while block := os.read(reader, 4):
            done = int.from_bytes(block, "big")
        os.close(reader)
        content, _, _ = read_generation(path)
        newest = number_of(content)
        assert newest in (done, done + 1)
    write_generation(make_content(newest + 1), path)
    assert numbers(path) == [newest + 1, newest]
    assert len(list(tmp_path.iterdir())) == 2
