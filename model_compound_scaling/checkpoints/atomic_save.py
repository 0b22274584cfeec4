"""Checkpoint files that survive crashes, full disks, rot and malice.

Atomic write: a temporary file in the same folder, fsync, rename over the old file, fsync of the
folder. Whatever happens, a reader finds the old file or the whole new one. Rot on the disk is found
by the CRC-32 that every entry of torch.save's zip archive has (see `untrusted`); the generation
before the newest is kept, so that it costs one epoch and not the run."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.checkpoints.untrusted import Refused, check, safetensors_file

FILE_LIMIT = 16 << 30  # bytes; EfficientNet-B7 with Adam's state has 0.8 GB


def previous_path(path: Path) -> Path:
    """Where the generation before the newest is kept: `last.previous.pt` for `last.pt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


class Generation(NamedTuple):
    """A checkpoint that was read: content, file it is from, and what is to be said about it."""

    state: dict
    source: Path
    lines: list[str]


def write_file(content: dict, path: Path) -> None:
    """Save a checkpoint atomically. Raises DiskError; the file is the old or the new one then."""
    with _temporary_files(path):
        _save(content, _temporary(path))
        _commit(path)


def write_generation(content: dict, path: Path) -> None:
    """Save as `write_file` does, and keep the file that was there as `previous_path(path)`. A
    damaged file is not kept: it would push out the last good one. Raises DiskError."""
    previous, keeps = previous_path(path), False
    with _temporary_files(path, previous):
        _save(content, _temporary(path))
        with suppress(Refused):  # also if there is none
            raw = _checked_bytes(path)
            try:
                os.link(path, _temporary(previous))
            except OSError:  # the file system has no links
                write_synced(raw, _temporary(previous))
            keeps = True
        _commit(path)
        if keeps:  # only now: until here the older generation may be the only other good one
            _commit(previous)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically. Raises DiskError."""
    with _temporary_files(path):
        write_synced(text.encode(), _temporary(path))
        _commit(path)


def write_synced(content: bytes, path: Path) -> None:
    """Write a file down to the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def has_generation(path: Path) -> bool:
    """Whether there is anything for `read_generation` to read, good or not."""
    return path.exists() or previous_path(path).exists()


def read_generation(path: Path) -> Generation:
    """The newest good generation, with a line per file skipped. Raises CheckpointError, naming each
    file, if none is good, and if there is none."""
    skipped = []
    for file in filter(Path.exists, (path, previous_path(path))):
        try:
            return Generation(_read(file), file, skipped)
        except Refused as reason:
            skipped.append(f"{file.name} skipped: it {reason}")
    if not skipped:
        raise CheckpointError(f"{path}: no such file, and no {previous_path(path).name}")
    raise CheckpointError(
        f"{path.parent} holds no good checkpoint ({'; '.join(skipped)}): restore one from a "
        "backup, or start over with --no-resume"
    )


def read_file(path: Path) -> dict:
    """Content of a `.pt` file on the CPU: a dict of tensors and plain values; of a `.safetensors`
    file: its tensors. The entries of a zip archive must pass their CRC-32 tests. Nothing in the
    file is executed, and it takes no more memory than its bytes account for. Raises
    CheckpointError, or UserError if the package that reads safetensors is missing."""
    try:
        return _read(path)
    except Refused as reason:
        raise CheckpointError(f"{path} {reason}") from None


def _read(path: Path) -> dict:
    """`read_file`, but what is wrong comes as Refused."""
    raw = _checked_bytes(path)
    if safetensors_file.is_one(raw):
        return safetensors_file.read(raw)
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    # the unpickler stumbles over damaged files in many ways: IndexError, KeyError, EOFError, ...
    except Exception as error:
        reason = str(error).partition("\n")[0][:120]
        raise Refused(f"cannot be read: damaged or no checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise Refused(f"holds a {type(content).__name__}, not a state dict")
    return content


def _checked_bytes(path: Path) -> bytes:
    """The file, read once, so that what was checked is what is used. Raises Refused."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT:
                raise Refused(f"has {size >> 30} GiB, more than any checkpoint here")
            raw = file.read()
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    check(raw)
    return raw


def _temporary(path: Path) -> Path:
    """Where the next version of a file is written before it takes the file's place."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def _temporary_files(*paths: Path) -> Iterator[None]:
    """Remove what a killed save left before and a failed one leaves behind; say why it failed."""
    temporaries = [_temporary(path) for path in paths]
    try:
        for file in temporaries:  # never overwritten: it may be a link to a good generation
            with suppress(FileNotFoundError):
                os.unlink(file)
        yield
    except OSError as error:
        raise DiskError(f"cannot write {paths[0]}: {error.strerror or error}") from None
    finally:
        for file in temporaries:
            with suppress(OSError):
                os.unlink(file)


def _save(content: dict, path: Path) -> None:
    """torch.save, down to the disk. Raises OSError."""
    with open(path, "xb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of torch's writer, which also closes after a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(str(error).partition("\n")[0]) from None
        file.flush()
        os.fsync(file.fileno())


def _commit(path: Path) -> None:
    """Move the temporary file to its place, in one step and for good."""
    os.replace(_temporary(path), path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # of the folder: the rename itself, and new names
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
