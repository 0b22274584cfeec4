"""One run per folder: a lock that the kernel frees when its owner dies, however it dies."""

import errno
import fcntl
import os
import shlex
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data.errors import UserError, printable
from model_compound_scaling.checkpoints.errors import DiskError

_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


class FolderLock:
    """A held folder. Free again after `release()`, or when this object or its process is gone.
    `taken_from` describes a run that died without releasing the folder; None if there was none."""

    def __init__(self, descriptor: int, taken_from: str | None) -> None:
        self.taken_from = taken_from
        self.release = weakref.finalize(self, _release, descriptor)
        self._descriptor = descriptor
        _held.add(self)

    def _forget(self) -> None:
        """In a forked child: its copy of the descriptor would keep the lock after the owner's
        death, and its exit must not release the owner's."""
        if self.release.detach():
            os.close(self._descriptor)


# DataLoader workers are forks
os.register_at_fork(after_in_child=lambda: [lock._forget() for lock in list(_held)])


def hold_folder(folder: Path) -> FolderLock:
    """Create the folder if needed and hold it until the lock is released or this process ends.
    Raises FolderInUse, naming the owner, and DiskError if the folder cannot be written. Where the
    file system has no locks, says so on stderr and goes on."""
    path, in_place = folder / ".lock", False
    job = [f"job {os.environ['SLURM_JOB_ID']}"] if os.environ.get("SLURM_JOB_ID") else []
    owner = ", ".join([os.uname().nodename, f"process {os.getpid()}", *job, shlex.join(sys.argv)])
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                _lock(descriptor, folder)
                with suppress(FileNotFoundError):
                    in_place = os.path.samestat(os.fstat(descriptor), os.stat(path))
                if in_place:
                    left = _owner(descriptor)
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{printable(owner)}\n".encode(), 0)
            except BaseException:
                os.close(descriptor)
                raise
            if in_place:
                return FolderLock(descriptor, left or None)
            os.close(descriptor)  # the folder was renamed in between: this lock is on the old one
    except OSError as error:
        raise DiskError(f"--output {folder} cannot be written: {error.strerror}") from None


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other run is writing what the runs below a folder share: machines that train
    parts of one grid may end together."""
    with ExitStack() as stack:
        with suppress(OSError):  # where there are no locks there are no turns
            file = stack.enter_context((folder / ".turn").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _owner(descriptor) or "just started"
        raise FolderInUse(f"{folder} is used by another run ({owner})") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        print(
            f"warning: {printable(folder)} is not protected against a second run: its file system "
            f"has no locks ({error.strerror})",
            file=sys.stderr,
        )


def _owner(descriptor: int) -> str:
    """What the lock file says; on one line and printable, whoever wrote it."""
    text = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)


def _release(descriptor: int) -> None:
    with suppress(OSError):  # only a dead owner leaves its name to the next run
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


class FolderInUse(UserError):
    """Another run owns the output folder."""

    exit_code = 3
