"""Is a `.pt` file whole, what torch.save writes, and no larger in memory than on disk? All checks
look at bytes that were read before; nothing in the file is unpickled by torch, and nothing is
allocated for it, until every claim it makes is known to be covered by its own bytes."""

import io
import pickletools
import struct
import zlib

from model_compound_scaling.checkpoints.untrusted import other_formats, safetensors_file
from model_compound_scaling.checkpoints.untrusted.pickle_claims import Refused, claims

ENTRY_LIMIT = 100_000
PICKLE_LIMIT = 32 << 20  # bytes; a list takes up to 64 times its pickled size
SATURATED = 0xFFFFFFFF  # a zip field whose value is in the 64-bit record instead
FOLDER = 0x10  # attribute; torch's reader leaves the memory for such an entry as it was
LOCAL, CENTRAL, END, END64, LOCATOR = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"


def check(raw: bytes) -> None:
    """Raise Refused unless `raw` is a whole and safe checkpoint, zipped, in the legacy format or
    safetensors. The last two have no checksums: rot in their values is not found."""
    check_format = _check_zip if raw[:4] == LOCAL else _check_legacy
    if safetensors_file.is_one(raw):
        check_format = safetensors_file.check_header
    try:
        check_format(raw)
    # anything else that a damaged structure makes these parsers stumble over
    except (Refused, struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        if other := other_formats.name(raw):
            raise Refused(other) from None
        if isinstance(error, Refused):
            raise
        raise Refused(f"is damaged or no checkpoint ({error})") from None


def _check_zip(raw: bytes) -> None:
    entries = _entries(raw)
    folder = next(iter(entries)).partition("/")[0]
    if any(not name.startswith(f"{folder}/") for name in entries):
        raise Refused("is no checkpoint: its archive has several folders")
    content = entries.get(f"{folder}/data.pkl")
    if content is None:
        raise Refused("is a zip archive, but no checkpoint: it has no data.pkl")
    _limit_pickle(len(content))
    for storage in claims(bytes(content)):
        entry = entries.get(f"{folder}/data/{storage.key}")
        if entry is None or len(entry) != storage.size:
            held = "none" if entry is None else f"{len(entry):,}"
            raise Refused(f"claims {storage.size:,} bytes for tensor {storage.key}, holds {held}")


def _entries(raw: bytes) -> dict[str, memoryview]:
    """The archive's files in order, each after its CRC-32 test. Stricter than the zip format, all
    as torch.save writes it: the directory at the end, entries stored one after the other from byte
    0, no name twice. Python's zipfile accepts bytes around the archive, a misplaced directory, one
    name twice and overlapping entries; torch's reader accepts some of them, too, but may see
    another archive than the one that was checked."""
    count, directory, end = _directory(raw)
    if count > ENTRY_LIMIT:
        raise Refused(f"has {count:,} entries, more than a checkpoint's {ENTRY_LIMIT:,}")
    entries: dict[str, memoryview] = {}
    seen, at, end_of_last = set(), directory, 0
    for _ in range(count):
        name, size, crc, local, at = _row(raw, at)
        if name.lower() in seen:  # torch looks names up in any case
            raise Refused(f"has two entries named {name!r}")
        if local < end_of_last or (not entries and local):
            raise Refused(f"has overlapping or hidden entries ({name!r})")
        signature, *lengths = struct.unpack_from("<4s22x2H", raw, local)
        if signature != LOCAL or raw[local + 30 : local + 30 + lengths[0]] != name.encode():
            raise Refused(f"is damaged: {name!r} is not where its directory says")
        start = local + 30 + sum(lengths)
        end_of_last = start + size
        if end_of_last > directory:
            raise Refused(f"claims {size:,} bytes for {name!r}, more than it holds")
        entries[name] = memoryview(raw)[start:end_of_last]
        if zlib.crc32(entries[name]) != crc:
            raise Refused(f"is damaged: {name} in it fails its CRC test")
        seen.add(name.lower())
    if at != end or not entries:
        raise Refused("is damaged: its directory is incomplete")
    return entries


def _directory(raw: bytes) -> tuple[int, int, int]:
    """Number of rows, start and end of the central directory."""
    end = len(raw) - 22
    signature, count, size, start, comment = struct.unpack_from("<4s6xH2IH", raw, end)
    if signature != END or comment:
        raise Refused("is cut off or damaged: its end is missing")
    if raw[end - 20 : end - 16] == LOCATOR:
        end -= 20 + 56
        (place,) = struct.unpack_from("<Q", raw, end + 56 + 8)
        signature, count, size, start = struct.unpack_from("<4s28x3Q", raw, end)
        if place != end or signature != END64:
            raise Refused("is damaged: its 64-bit directory is not where it should be")
    if start + size != end:
        raise Refused("is damaged: its directory has the wrong size")
    return count, start, end


def _row(raw: bytes, at: int) -> tuple[str, int, int, int, int]:
    """Name, size, CRC-32 and place of an entry, and where the next row of the directory starts."""
    row = struct.unpack_from("<4s4x2H4x3I3H4x2I", raw, at)
    signature, flags, method, crc, packed, size, name_size, extra_size, comment_size = row[:9]
    attributes, local = row[9:]
    if signature != CENTRAL:
        raise Refused("is damaged: its directory is broken")
    after_name = at + 46 + name_size
    name = raw[at + 46 : after_name].decode()
    fields = [size, packed, local]
    if wide := [i for i, value in enumerate(fields) if value == SATURATED]:
        kind, *values = struct.unpack_from(f"<H2x{len(wide)}Q", raw, after_name)
        if kind != 1 or 4 + 8 * len(wide) > extra_size:
            raise Refused("is damaged: sizes of 4 GiB or more are missing")
        for i, value in zip(wide, values, strict=True):
            fields[i] = value
    size, packed, local = fields
    parts = name.split("/")
    if len(parts) < 2 or ".." in parts or "" in parts or "\\" in name or ":" in parts[0]:
        raise Refused(f"has an entry with the unsafe name {name!r}")
    if attributes & FOLDER:
        raise Refused(f"is damaged: {name!r} in it is marked as a folder")
    if method or flags & 1 or packed != size:
        raise Refused(f"has the compressed or encrypted entry {name!r}; torch.save writes neither")
    return name, size, crc, local, after_name + extra_size + comment_size


def _limit_pickle(size: int) -> None:
    if size > PICKLE_LIMIT:
        raise Refused(f"has {size >> 20} MiB beside its tensors, more than {PICKLE_LIMIT >> 20}")


def _check_legacy(raw: bytes) -> None:
    """Five pickles (magic number, protocol, machine, content, the storages' order), then per
    storage its number of elements in 8 bytes and its values."""
    stream, found = io.BytesIO(raw), []
    for _ in range(5):
        start = stream.tell()
        for _, _, position in pickletools.genops(stream):
            _limit_pickle(position - start)
        pickled = raw[start : stream.tell()]
        # one by one: what is refused must be named as such, also where the rest is missing
        found.append({storage.key: storage for storage in claims(pickled)})
    storages, at = found[3], stream.tell()
    names = ("BINUNICODE", "SHORT_BINSTRING")  # the order is a pickled list of strings
    order = [value for opcode, value, _ in pickletools.genops(pickled) if opcode.name in names]
    if sorted(order) != sorted(storages):
        raise Refused("is damaged: its list of tensors is not that of its content")
    for storage in map(storages.get, order):
        (count,) = struct.unpack_from("<q", raw, at)
        at += 8 + storage.size
        if count * storage.item_size != storage.size or at > len(raw):
            raise Refused(f"claims {storage.size:,} bytes for tensor {storage.key}, holds fewer")
