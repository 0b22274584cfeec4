"""Varints (unsigned LEB128): whole numbers of seven bits a byte, the lowest first."""

from model_compound_scaling.checkpoints.errors import CheckpointError


def varint(number: int) -> bytes:
    """A number of at least 0 as bytes; all but the last have their highest bit set."""
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. Raises CheckpointError beyond the end."""
    number, shift = 0, 0
    while at < len(content) and shift < 63:
        number |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 128:
            return number, at
    raise CheckpointError("a number beyond the end")
