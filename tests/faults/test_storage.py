"""Saves cut short at any point, full disks, rot: a good checkpoint is always found again."""

import builtins
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch

from data.errors import CheckpointError, DiskError
from model_compound_scaling import storage
from model_compound_scaling.manifests import manifest_path
from model_compound_scaling.storage import (
    has_generation,
    previous_path,
    read_file,
    read_generation,
    write_file,
    write_generation,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Saboteur:
    """Takes the place of `os` and `open` in the storage module and fails at the k-th call.

    As a kill it fails at every later call too, so that no cleaning up takes place.
    """

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, 0

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.calls > self.at and isinstance(self.error, Killed)):
            raise self.error

    def __getattr__(self, name):
        real = getattr(os, name)
        if not callable(real):
            return real

        def call(*args):
            self.tick()
            return real(*args)

        return call

    def open_file(self, path, mode):
        self.tick()
        file = builtins.open(path, mode)  # noqa: SIM115  (the caller closes it)
        return _SabotagedFile(file, self) if "x" in mode else file


class _SabotagedFile:
    def __init__(self, file, saboteur) -> None:
        self.file, self.saboteur = file, saboteur

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, block):
        self.file.write(block[: len(block) // 2])
        self.saboteur.tick()
        return self.file.write(block[len(block) // 2 :])


def attempt(write, content, path, monkeypatch, *, at, error, links):
    """Save with a failure at call `at`; "done", "failed", or "untouched" if there was no such
    call."""
    saboteur = Saboteur(at, error)

    def no_links(*_):
        saboteur.tick()
        raise OSError(errno.EPERM, "no links here")

    if not links:
        saboteur.link = no_links
    with monkeypatch.context() as patch:
        patch.setattr(storage, "os", saboteur)
        patch.setattr(storage, "open", saboteur.open_file, raising=False)
        try:
            write(content, path)
        except (Killed, DiskError):
            return "failed"
    return "done" if saboteur.calls >= at else "untouched"


def numbers(path, number_of):
    """Numbers of all readable generations, newest first."""
    found = []
    for file in (path, previous_path(path)):
        try:
            found.append(number_of(read_file(file)))
        except CheckpointError:
            found.append(None)
    return found


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("write", [write_file, write_generation])
def test_a_kill_at_any_call_leaves_old_or_new(
    tmp_path, monkeypatch, make_content, number_of, write, before, links
):
    failures = 0
    for at in itertools.count(1):
        path = tmp_path / str(at) / "last.pt"
        path.parent.mkdir()
        for number in range(1, before + 1):
            write(make_content(number), path)
        outcome = attempt(
            write, make_content(9), path, monkeypatch, at=at, error=Killed(), links=links
        )
        if outcome == "untouched":
            break
        failures += outcome == "failed"
        if before or has_generation(path):
            content, _, _ = read_generation(path)
            assert number_of(content) in (before, 9), at
        if write is write_generation and before == 2:  # a second one is good as well
            assert len({n for n in numbers(path, number_of) if n in (1, 2, 9)}) == 2, at
        # the next save finishes what was left, and the one after it
        write(make_content(10), path)
        assert number_of(read_file(path)) == 10
        assert not [file for file in path.parent.iterdir() if file.name.startswith(".")], at
        write(make_content(11), path)
        assert number_of(read_generation(path)[0]) == 11
    assert failures > 15


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_kill_after_kill(tmp_path, monkeypatch, make_content, number_of, kill):
    """Every save is killed, at random calls, in one folder: the newest whole one is there."""
    rng = random.Random(kill)
    path = tmp_path / "last.pt"
    write_generation(make_content(0), path)
    newest = 0
    for number in range(1, 120):
        at = rng.randint(1, 120)
        options = {"at": at, "error": Killed(), "links": rng.random() < 0.7}
        outcome = attempt(write_generation, make_content(number), path, monkeypatch, **options)
        found = number_of(read_generation(path)[0])
        assert found in ((newest, number) if outcome == "failed" else (number,))
        newest = found
    assert newest > 5


@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("write", [write_file, write_generation])
def test_an_error_at_any_call_leaves_file_and_manifest(
    tmp_path, monkeypatch, make_content, number_of, write, before
):
    failures = 0
    for at in itertools.count(1):
        path = tmp_path / str(at) / "last.pt"
        path.parent.mkdir()
        for number in range(1, before + 1):
            write(make_content(number), path)
        error = OSError(errno.ENOSPC, "No space left on device")
        outcome = attempt(write, make_content(9), path, monkeypatch, at=at, error=error, links=True)
        if outcome == "untouched":
            break
        expected = before if outcome == "failed" else 9
        if outcome == "failed" and write is write_generation and number_on_disk(path) == 9:
            expected = 9  # failed when moving the older generation: the newer one is saved
        failures += outcome == "failed" and expected != 9
        assert path.exists() == manifest_path(path).exists() == bool(expected), at
        if expected:
            assert number_of(read_file(path)) == expected, at
        assert not list(path.parent.glob(".*.tmp")), at
    assert failures > 8


def number_on_disk(path):
    return torch.load(path, weights_only=True)["number"] if path.exists() else None


def flip(raw, rng):
    bit = rng.randrange(8 * len(raw))
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
    path, rng = two_generations, random.Random(0)
    raw = path.read_bytes()
    count = {"flip": (100, 1000), "cut": (20, 100)}[damage][full]
    for _ in range(count):
        path.write_bytes(flip(raw, rng) if damage == "flip" else raw[: rng.randrange(len(raw))])
        with pytest.raises(CheckpointError, match=r"manifest.*delete last\.pt\.manifest") as error:
            read_file(path)
        assert "\n" not in str(error.value)
        content, file, skipped = read_generation(path)
        assert number_of(content) == 1 and file == previous_path(path)
        assert len(skipped) == 1 and skipped[0].startswith("last.pt skipped: it ")


def test_rot_of_a_file_without_manifest_is_detected_or_harmless(two_generations, number_of, full):
    path, rng = two_generations, random.Random(0)
    raw = path.read_bytes()
    manifest_path(path).unlink()
    detected, count = 0, 1000 if full else 200
    for _ in range(count):
        path.write_bytes(flip(raw, rng))
        try:
            assert number_of(read_file(path)) == 2
        except CheckpointError:
            detected += 1
    assert detected > count / 2  # the rest are bytes between the entries


def test_rot_of_a_manifest_is_survived(two_generations, number_of):
    path, rng = two_generations, random.Random(0)
    raw = manifest_path(path).read_bytes()
    for damaged in (
        b"",
        b"[]",
        b"[" * 60_000,
        b'{"bytes": 1}',
        *(flip(raw, rng) for _ in "x" * 40),
    ):
        manifest_path(path).write_bytes(damaged)
        assert number_of(read_generation(path)[0]) in (1, 2)


def test_a_damaged_generation_does_not_push_out_a_good_one(
    two_generations, make_content, number_of
):
    path = two_generations
    path.write_bytes(flip(path.read_bytes(), random.Random(0)))
    write_generation(make_content(3), path)
    assert numbers(path, number_of) == [3, 1]


def test_an_uncommitted_save_is_skipped_and_old_folders_are_read(two_generations, number_of):
    path = two_generations
    manifest_path(path).unlink()
    content, file, skipped = read_generation(path)
    assert number_of(content) == 1 and file == previous_path(path)
    assert skipped == ["last.pt skipped: it has no manifest: its save was not finished"]
    manifest_path(previous_path(path)).unlink()
    content, file, skipped = read_generation(path)
    assert number_of(content) == 2 and file == path and not skipped


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


def test_the_manifest_says_what_the_file_is(two_generations):
    path = two_generations
    said = json.loads(manifest_path(path).read_text())
    tool = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert said["sha256"] == tool.stdout.split()[0]
    assert (said["file"], said["bytes"]) == ("last.pt", path.stat().st_size)
    assert said["torch"] == torch.__version__


def test_a_file_size_limit_leaves_the_old_checkpoint(
    two_generations, make_content, number_of, fork, full
):
    path = two_generations
    size = path.stat().st_size
    limits = [0, 1, size - 1, *range(7, size, size // (100 if full else 12))]
    for limit in limits:

        def save(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(DiskError, match=r"cannot write .*last\.pt: File too large"):
                write_generation(make_content(3), path)

        assert os.waitpid(fork(save), 0)[1] == 0, limit
        assert numbers(path, number_of) == [2, 1], limit
        assert len(list(path.parent.iterdir())) == 4


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


def test_a_full_disk_leaves_the_old_checkpoint(small_disk, make_content, number_of):
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
        assert numbers(path, number_of) == [2, 1], left
        filler.unlink()
    assert failed > 2 and numbers(path, number_of) == [3, 2]


def test_a_vanished_or_forbidden_folder_is_a_disk_error(tmp_path, make_content):
    with pytest.raises(DiskError, match=r"gone/last\.pt: No such file or directory"):
        write_file(make_content(1), tmp_path / "gone" / "last.pt")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Not a directory"):
        write_generation(make_content(1), tmp_path / "file" / "last.pt")


def test_sigkill_of_a_saving_process(tmp_path, make_content, number_of, fork, full):
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
    assert numbers(path, number_of) == [newest + 1, newest]
    assert len(list(tmp_path.iterdir())) == 4
