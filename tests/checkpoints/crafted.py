"""Checkpoints made by hand: what torch.save would not write."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from data.errors import UserError

LEGACY = {"_use_new_zipfile_serialization": False}


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def assert_refused(error: UserError, code: int) -> None:
    assert error.exit_code == code and "\n" not in str(error) and len(str(error)) < 400


class Memory:
    """Pickles as a storage."""

    def __init__(self, numel=4, key="0", *view) -> None:
        self.pid = ("storage", torch.FloatStorage, key, "cpu", numel, *view)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Memory) else None


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensor(memory=None, offset=0, size=(4,), stride=(1,)) -> Call:
    arguments = (memory or Memory(), offset, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


VALUES = np.arange(4, dtype=np.float32).tobytes()


def archive(content=None, *, values=VALUES, more=(), compression=zipfile.ZIP_STORED) -> bytes:
    """A checkpoint written with Python's zipfile; `more` are further entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        pickle_ = content if isinstance(content, bytes) else pickled(content or {"a": tensor()})
        entries = [("net/data.pkl", pickle_), ("net/data/0", values), ("net/version", b"3\n")]
        for name, value in [*entries, *more]:
            file.writestr(name, value)
    return buffer.getvalue()


def patched(raw: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    at = raw.rindex(old) if last else raw.index(old)
    return raw[:at] + new + raw[at + len(old) :]


def resized(size: int) -> bytes:
    """The archive whose directory claims `size` bytes for data/0, in 64 bits if need be."""
    raw = archive()
    row = raw.rindex(b"PK\1\2", 0, raw.rindex(b"net/data/0"))
    wide = struct.pack("<2H2Q", 1, 16, size, size)
    narrow = struct.pack("<2I", 0xFFFFFFFF, 0xFFFFFFFF)
    head = raw[: row + 20] + narrow + raw[row + 28 : row + 30] + struct.pack("<H", len(wide))
    raw = head + raw[row + 32 : row + 56] + wide + raw[row + 56 :]
    directory = struct.unpack("<I", raw[-10:-6])[0] + len(wide)
    return raw[:-10] + struct.pack("<I", directory) + raw[-6:]


def legacy(numel: int, claimed: int) -> bytes:
    head = saved({}, **LEGACY)
    head = head[: head.index(b"\x80\x02}q\x00.")]
    content = {"a": tensor(Memory(numel, "0", None), size=(numel,))}
    return head + pickled(content) + pickled(["0"]) + struct.pack("<q", claimed) + VALUES


def copies() -> bytes:
    """A tuple that is pickled once and copied 100,000 times."""
    items = b"(" + b"K\0" * 10_000 + b"tq\1"
    return b"\x80\2](" + items + b"ctorch\nSize\nq\2" + b"h\2h\1\x85R" * 100_000 + b"e."


def overlapping() -> bytes:
    """An archive whose data/1 is inside data/0."""
    inner = struct.pack("<4s5H3I2H", b"PK\3\4", 20, *[0] * 7, 10, 0) + b"net/data/1"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("net/data.pkl", pickled({"a": 1}))
        file.writestr("net/data/0", inner)
        hidden = zipfile.ZipInfo("net/data/1")
        hidden.header_offset = file.getinfo("net/data/0").header_offset + 30 + 10
        hidden.CRC = hidden.file_size = hidden.compress_size = 0
        file.filelist.append(hidden)
    return buffer.getvalue()


def elsewhere() -> bytes:
    """An archive whose 64-bit directory torch looks for in one place, Python's zipfile in
    another."""
    raw = bytearray(saved({}))
    raw[raw.rindex(b"PK\6\7") + 8] ^= 1
    assert zipfile.ZipFile(io.BytesIO(raw)).testzip() is None
    return bytes(raw)


def folder(name: str) -> zipfile.ZipInfo:
    """An entry that torch reads as a folder: what memory held before passes for its values."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0x10
    return info
