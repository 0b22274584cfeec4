"""Is a `.pt` file what torch.save writes, and no larger in memory than on disk?

All checks look at bytes that were read before; nothing in the file is unpickled by torch, and
nothing is allocated for it, until every claim it makes is known to be covered by its own bytes.
"""

import io
import pickletools
import struct
import zlib
from dataclasses import dataclass

from model_compound_scaling.checkpoints.untrusted.pickle_claims import Refused, Storage, claims

ENTRY_LIMIT = 100_000
PICKLE_LIMIT = 32 << 20  # bytes; a list takes up to 64 times its pickled size
LEGACY_HEAD = 3  # pickles before the content: magic number, protocol, machine
SATURATED = 0xFFFFFFFF  # a zip field whose value is in the 64-bit record instead
LOCAL, CENTRAL, END, END64, LOCATOR = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"


@dataclass(frozen=True)
class Entry:
    """A stored file of an archive: where its bytes are, and what the archive says they sum to."""

    start: int
    size: int
    crc: int


def check(raw: bytes, *, crc: bool) -> None:
    """Raise Refused unless `raw` is a safe checkpoint, zipped or in the legacy format.

    `crc` also tests the zip's checksums; it is needless if a SHA-256 of the whole was compared.
    Legacy files have no checksums.
    """
    try:
        if raw[:4] == LOCAL:
            _check_zip(raw, crc=crc)
        else:
            _check_legacy(raw)
    # anything else that a damaged structure makes these parsers stumble over
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"is damaged or no checkpoint ({error})") from None


def _check_zip(raw: bytes, *, crc: bool) -> None:
    entries = _entries(raw)
    folder = next(iter(entries)).partition("/")[0]
    if any(not name.startswith(f"{folder}/") for name in entries):
        raise Refused("is no checkpoint: its archive has several folders")
    for name, entry in entries.items():
        if crc and zlib.crc32(memoryview(raw)[entry.start : entry.start + entry.size]) != entry.crc:
            raise Refused(f"is damaged: {name} in it fails its CRC test")
    content = entries.get(f"{folder}/data.pkl")
    if content is None:
        raise Refused("is a zip archive, but no checkpoint: it has no data.pkl")
    _limit_pickle(content.size)
    for storage in claims(raw[content.start : content.start + content.size]):
        entry = entries.get(f"{folder}/data/{storage.key}")
        if entry is None or entry.size != storage.size:
            held = "none" if entry is None else f"{entry.size:,}"
            raise Refused(f"claims {storage.size:,} bytes for tensor {storage.key}, holds {held}")


def _entries(raw: bytes) -> dict[str, Entry]:
    """The archive's files in order. Stricter than the zip format: all as torch.save writes it.

    With the directory at the end, entries stored one after the other from byte 0 and no name
    twice, every reader of zip files sees the same archive.
    """
    count, start, size = _directory(raw)
    if count > ENTRY_LIMIT:
        raise Refused(f"has {count:,} entries, more than a checkpoint's {ENTRY_LIMIT:,}")
    entries: dict[str, Entry] = {}
    seen, at, end_of_last = set(), start, 0
    for _ in range(count):
        name, entry, local, at = _entry(raw, at)
        if name.lower() in seen:  # torch looks names up in any case
            raise Refused(f"has two entries named {name!r}")
        if local < end_of_last or (not entries and local):
            raise Refused(f"has overlapping or hidden entries ({name!r})")
        seen.add(name.lower())
        entries[name], end_of_last = entry, entry.start + entry.size
        if end_of_last > start:
            raise Refused(f"claims {entry.size:,} bytes for {name!r}, more than it holds")
    if at != start + size or not entries:
        raise Refused("is damaged: its directory is incomplete")
    return entries


def _directory(raw: bytes) -> tuple[int, int, int]:
    """Entries, start and size of the central directory."""
    end = len(raw) - 22
    signature, _, _, _, count, size, start, comment = struct.unpack_from("<4s4H2IH", raw, end)
    if signature != END or comment:
        raise Refused("is cut off or damaged: its end is missing")
    if raw[end - 20 : end - 16] == LOCATOR:
        (place,) = struct.unpack_from("<Q", raw, end - 12)
        end -= 20 + 56
        if place != end or raw[end : end + 4] != END64:
            raise Refused("is damaged: its 64-bit directory is not where it should be")
        wide = struct.unpack_from("<3Q", raw, end + 32)
        narrow = zip((count, size, start), (0xFFFF, SATURATED, SATURATED), wide, strict=True)
        if any(short not in (limit, long) for short, limit, long in narrow):
            raise Refused("is damaged: its two directories disagree")
        count, size, start = wide
    if start + size != end:
        raise Refused("is damaged: its directory has the wrong size")
    return count, start, size


def _entry(raw: bytes, at: int) -> tuple[str, Entry, int, int]:
    """Name, place, offset of the local header, and where the next directory row starts."""
    row = struct.unpack_from("<4s6H3I5H2I", raw, at)
    signature, flags, method, crc, packed, size = row[0], row[3], row[4], *row[7:10]
    name_size, extra_size, comment_size, local = row[10], row[11], row[12], row[16]
    if signature != CENTRAL:
        raise Refused("is damaged: its directory is broken")
    name = raw[at + 46 : at + 46 + name_size].decode()
    extra = raw[at + 46 + name_size : at + 46 + name_size + extra_size]
    size, packed, local = _widen([size, packed, local], extra)
    parts = name.split("/")
    if len(parts) < 2 or ".." in parts or "" in parts or "\\" in name or ":" in parts[0]:
        raise Refused(f"has an entry with the unsafe name {name!r}")
    if method or flags & 1 or packed != size:
        raise Refused(f"has the compressed or encrypted entry {name!r}; torch.save writes neither")
    head, inner_name, inner_extra = struct.unpack_from("<4s22x2H", raw, local)
    if head != LOCAL or raw[local + 30 : local + 30 + inner_name] != name.encode():
        raise Refused(f"is damaged: {name!r} is not where its directory says")
    start = local + 30 + inner_name + inner_extra
    return name, Entry(start, size, crc), local, at + 46 + name_size + extra_size + comment_size


def _widen(fields: list[int], extra: bytes) -> list[int]:
    """Saturated 32-bit fields replaced by the 64-bit ones of extra field 1, which is first."""
    missing = [i for i, value in enumerate(fields) if value == SATURATED]
    if missing:
        kind, _, *wide = struct.unpack_from(f"<2H{len(missing)}Q", extra)
        if kind != 1:
            raise Refused("is damaged: sizes of 4 GiB or more are missing")
        for i, value in zip(missing, wide, strict=True):
            fields[i] = value
    return fields


def _limit_pickle(size: int) -> None:
    if size > PICKLE_LIMIT:
        raise Refused(f"has {size >> 20} MiB beside its tensors, more than {PICKLE_LIMIT >> 20}")


def _check_legacy(raw: bytes) -> None:
    """Five pickles (three of them the head, then content and the storages' order), then per
    storage its number of elements in 8 bytes and its values."""
    stream, ends = io.BytesIO(raw), [0]
    for _ in range(LEGACY_HEAD + 2):
        # content that is refused must be named as such, also where the rest is missing
        last = 0
        for opcode, _, position in pickletools.genops(stream):
            last = position
            _limit_pickle(position - ends[-1])
            if opcode.name == "STOP":
                break
        ends.append(last + 1)
        found = claims(raw[ends[-2] : ends[-1]])
        if len(ends) == LEGACY_HEAD + 2:
            storages = {storage.key: storage for storage in found}
    at = ends[-1]
    order = _storage_order(raw[ends[-2] : ends[-1]])
    if sorted(order) != sorted(storages):
        raise Refused("is damaged: its list of tensors is not that of its content")
    for key in order:
        at = _skip_storage(raw, at, storages[key])


def _storage_order(pickled: bytes) -> list[str]:
    """Keys of the storages; a pickled list of strings, read without an unpickler."""
    names = ("BINUNICODE", "SHORT_BINSTRING")
    return [arg for opcode, arg, _ in pickletools.genops(pickled) if opcode.name in names]


def _skip_storage(raw: bytes, at: int, storage: Storage) -> int:
    (count,) = struct.unpack_from("<q", raw, at)
    end = at + 8 + storage.size
    if count * storage.item_size != storage.size or end > len(raw):
        raise Refused(f"claims {storage.size:,} bytes for tensor {storage.key}, holds fewer")
    return end
