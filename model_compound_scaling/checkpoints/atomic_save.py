"""Checkpoint files that survive crashes, full disks, rot and malice.

A save writes file and manifest beside their places first, and syncs them; then the file takes its
place, then the manifest. Between these two steps the waiting manifest already describes the new
file, so at every moment a file in place agrees with its manifest or with the waiting one. The next
save finishes or removes what a killed one left.
"""

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.checkpoints.manifest import (
    complaint,
    manifest_path,
    manifest_text,
    sum_of_file,
    waiting,
)
from model_compound_scaling.checkpoints.untrusted.pickle_claims import Refused
from model_compound_scaling.checkpoints.untrusted.zip_structure import check

FILE_LIMIT = 16 << 30  # bytes; EfficientNet-B7 with Adam's state has 0.8 GB


def previous_path(path: Path) -> Path:
    """Where the generation before the newest is kept: `last.previous.pt` for `last.pt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_file(content: dict, path: Path) -> None:
    """Save so that a reader finds the old file or the whole new one, whatever happens.

    Raises DiskError; old file and manifest are untouched then.
    """
    with _disk_errors(path):
        _settle(path)
        _stage(content, path)
        _commit(path)


def write_generation(content: dict, path: Path) -> None:
    """Save as `write_file` does, and keep the file that was there as `previous_path(path)`.

    A damaged file is not kept: it would push out the last good one. Raises DiskError.
    """
    previous = previous_path(path)
    with _disk_errors(path, previous):
        _settle(path)
        _settle(previous)
        _stage(content, path)
        rotates = path.exists() and _agrees(path, manifest_path(path))
        if rotates:
            _link_or_copy(path, waiting(previous))
            _link_or_copy(manifest_path(path), waiting(manifest_path(previous)))
        _commit(path)
        if rotates:  # only now: until here the older generation may be the only good one
            _commit(previous)


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there yet. Raises DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make {folder}: {error.strerror}") from None


def write_synced(content: bytes, path: Path) -> None:
    """Write a file down to the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        _sync(file)


def write_text(text: str, path: Path) -> None:
    """A file without a manifest, the old one or the whole new one. Raises DiskError."""
    temporary = waiting(path)
    try:
        write_synced(text.encode(), temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise DiskError(f"cannot write {path}: {error.strerror}") from None


def has_generation(path: Path) -> bool:
    """Whether there is anything for `read_generation` to read, good or not."""
    return path.exists() or previous_path(path).exists()


def read_generation(path: Path) -> tuple[dict, Path, list[str]]:
    """The newest good generation: content, the file it is from, and a line per file skipped.

    Where one generation has a manifest, one without is a save that was not finished. Raises
    CheckpointError, naming each file, if none is good, and if there is none.
    """
    candidates = [file for file in (path, previous_path(path)) if file.exists()]
    if not candidates:
        raise CheckpointError(f"{path}: no such file, and no {previous_path(path).name}")
    with_manifest = [file for file in candidates if _has_manifest(file)]
    skipped = []
    for file in candidates:
        try:
            if with_manifest and file not in with_manifest:
                raise Refused("has no manifest: its save was not finished")
            return _read(file), file, skipped
        except Refused as reason:
            skipped.append(f"{file.name} skipped: it {reason}")
    raise CheckpointError(
        f"{path.parent} holds no good checkpoint ({'; '.join(skipped)}): restore one from a "
        "backup, or start over with --no-resume"
    )


def read_file(path: Path) -> dict:
    """Content of a `.pt` file on the CPU: a dict of tensors and plain values.

    The file must agree with its manifest if there is one, else pass its own CRC test. Nothing in
    it is executed, and it takes no more memory than its bytes account for. Raises CheckpointError.
    """
    try:
        return _read(path)
    except Refused as reason:
        advice = f": restore it, or delete {manifest_path(path).name} if you replaced it on purpose"
        shown = advice if isinstance(reason, _Mismatch) else ""
        raise CheckpointError(f"{path} {reason}{shown}") from None


class _Mismatch(Refused):
    """A file and its manifest do not belong together."""


def _read(path: Path) -> dict:
    """`read_file`, but what is wrong comes as Refused. The file is read once, so that what was
    checked is what is loaded."""
    raw = _read_bytes(path)
    verified = _verify(path, raw)
    check(raw, crc=not verified)
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    # the unpickler stumbles over damaged files in many ways: IndexError, KeyError, EOFError, ...
    except Exception as error:
        reason = str(error).partition("\n")[0][:120]
        raise Refused(f"cannot be read: damaged or no checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise Refused(f"holds a {type(content).__name__}, not a state dict")
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT:
                raise Refused(f"has {size >> 30} GiB, more than any checkpoint here")
            return file.read()
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None


def _verify(path: Path, raw: bytes) -> bool:
    """Whether a manifest vouches for the file; Refused if there is one and none does."""
    manifest, pending = manifest_path(path), waiting(manifest_path(path))
    present = [file for file in (manifest, pending) if file.exists()]
    if not present:
        return False
    facts = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    complaints = [complaint(file, **facts) for file in present]
    if None in complaints:
        return True
    if manifest in present:
        raise _Mismatch(complaints[0])
    return False


def _agrees(path: Path, manifest: Path) -> bool:
    """Whether a file on disk is as its manifest says; not, if either is missing."""
    if not manifest.exists() or not path.exists():
        return False
    size, sha256 = sum_of_file(path)
    return complaint(manifest, size=size, sha256=sha256) is None


def _has_manifest(path: Path) -> bool:
    manifest = manifest_path(path)
    return manifest.exists() or _agrees(path, waiting(manifest))


class _Hashing:
    """A file that sums what is written to it, and remembers why writing failed: torch.save turns
    the error into another one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, block: bytes) -> int:
        try:
            self.file.write(block)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(block)
        self.size += len(block)
        return len(block)

    def flush(self) -> None:
        self.file.flush()


def _stage(content: dict, path: Path) -> None:
    """Write file and manifest beside their places, down to the disk."""
    with open(waiting(path), "xb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)
        except RuntimeError as error:
            raise hashing.error or OSError(str(error).partition("\n")[0]) from None
        _sync(file)
    text = manifest_text(path.name, size=hashing.size, sha256=hashing.digest.hexdigest())
    with open(waiting(manifest_path(path)), "xb") as file:
        file.write(text.encode())
        _sync(file)
    _sync_folder(path.parent)


def _commit(path: Path) -> None:
    """Move file and manifest from where they wait to their places, both or neither."""
    pair = (path, manifest_path(path))
    had = [file for file in pair if file.exists()]
    for file in had:
        with suppress(OSError):  # without links, a failure here leaves the new file, which is whole
            os.link(file, _kept(file))
    try:
        for file in pair:
            os.replace(waiting(file), file)
            _sync_folder(path.parent)
    except OSError:
        for file in pair:
            with suppress(OSError):
                if file not in had:
                    os.unlink(file)
                elif _kept(file).exists():
                    os.replace(_kept(file), file)
        raise
    for file in had:
        with suppress(OSError):  # the save is done; the next one tries again
            os.unlink(_kept(file))


def _kept(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _settle(path: Path) -> None:
    """After a save that was cut short: give its file the manifest that waits, remove the rest."""
    manifest = manifest_path(path)
    pending = waiting(manifest)
    if pending.exists() and _agrees(path, pending):
        os.replace(pending, manifest)
        _sync_folder(path.parent)
    for leftover in (waiting(path), pending, _kept(path), _kept(manifest)):
        _remove(leftover)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; a copy on file systems without links."""
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new)
            _sync(new)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames and new names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(*paths: Path) -> Iterator[None]:
    """Clean up after a save that fails, and say why in one line."""
    try:
        yield
    except BaseException as error:
        for path in paths:
            with suppress(OSError):
                _settle(path)
        if isinstance(error, OSError):
            raise DiskError(f"cannot write {paths[0]}: {error.strerror or error}") from None
        raise
