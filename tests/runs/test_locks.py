"""One run per folder, and a dead run's folder is free again."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from model_compound_scaling.checkpoints.errors import DiskError
from model_compound_scaling.runs.folder_lock import FolderInUse, hold_folder

pytestmark = pytest.mark.faults

OWNER = (
    "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
    "from model_compound_scaling.runs.folder_lock import hold_folder\n"
    "lock = hold_folder(Path(sys.argv[2])); print('held', flush=True); time.sleep(60)"
)


def wait_for(descriptor: int) -> None:
    assert os.read(descriptor, 1)


def test_a_second_run_is_refused_and_told_by_whom(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(sys, "argv", ["run_compound_scaling.py", "--output", "a folder"])
    folder = tmp_path / "new" / "run"
    lock = hold_folder(folder)
    assert lock.taken_from is None
    with pytest.raises(FolderInUse) as error:
        hold_folder(folder)
    message = str(error.value)
    assert error.value.exit_code == 3 and "\n" not in message
    for part in (
        str(folder),
        os.uname().nodename,
        f"process {os.getpid()}",
        "job 4711",
        "run_compound_scaling.py --output 'a folder'",
    ):
        assert part in message
    lock.release()
    again = hold_folder(folder)
    assert again.taken_from is None  # released, not taken over
    again.release()


def test_another_process_is_refused_until_it_dies(tmp_path):
    repository = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", OWNER, repository, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"process {owner.pid}"):
            hold_folder(tmp_path)
        owner.kill()
    lock = hold_folder(tmp_path)
    assert f"process {owner.pid}" in lock.taken_from
    lock.release()


def test_children_that_outlive_their_parent_do_not_keep_the_lock(tmp_path, fork):
    reader, writer = os.pipe()
    grandchildren = []

    def own():
        lock = hold_folder(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, child.to_bytes(4, "big"))
        time.sleep(60)
        lock.release()

    owner = fork(own)
    grandchildren.append(int.from_bytes(os.read(reader, 4), "big"))
    try:
        with pytest.raises(FolderInUse):
            hold_folder(tmp_path)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.kill(grandchildren[0], 0)  # it lives
        lock = hold_folder(tmp_path)
        assert f"process {owner}" in lock.taken_from
        lock.release()
    finally:
        os.kill(grandchildren[0], signal.SIGKILL)


def test_a_child_that_exits_does_not_release_its_parents_lock(tmp_path, fork):
    lock = hold_folder(tmp_path)

    def exit_as_python_does():
        child_lock = lock
        child_lock.release()
        child_lock.release()

    os.waitpid(fork(exit_as_python_does), 0)
    list(DataLoader(range(8), num_workers=2, multiprocessing_context="fork"))
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        hold_folder(tmp_path)
    lock.release()


def test_a_forgotten_lock_is_free(tmp_path):
    hold_folder(tmp_path)
    assert hold_folder(tmp_path).taken_from is None


def test_a_renamed_folder_keeps_its_lock_and_a_new_one_has_its_own(tmp_path):
    first = hold_folder(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "run.old1")
    second = hold_folder(tmp_path / "run")
    for name in ("run", "run.old1"):
        with pytest.raises(FolderInUse):
            hold_folder(tmp_path / name)
    first.release()
    second.release()


def test_a_folder_renamed_between_opening_and_locking_is_not_taken(tmp_path, monkeypatch):
    folder, real = tmp_path / "run", fcntl.flock
    calls = []

    def rename_first(descriptor, operation):
        if not calls:
            folder.rename(tmp_path / "aside")
        calls.append(operation)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", rename_first)
    lock = hold_folder(folder)
    assert (
        len(calls) == 2
        and (folder / ".lock").read_text()
        and not (tmp_path / "aside" / ".lock").read_text()
    )
    lock.release()


def test_file_systems_without_locks_are_said_to_be_unprotected(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = hold_folder(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(os.uname().nodename)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"warning: {tmp_path} is not protected" in error
    lock.release()


def test_folders_that_cannot_be_made_are_disk_errors(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"--output .*file/run cannot be written: Not a directory"):
        hold_folder(tmp_path / "file" / "run")
