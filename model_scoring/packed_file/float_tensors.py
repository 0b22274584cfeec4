"""Tensors that are not quantized, packed: planes of bytes through a general compressor.

The values of each type are joined. Of floating-point ones all first bytes (sign and exponent) come
first; the bytes of the next plane are sorted by those before them, which gathers what is alike.
"""

import lzma
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_scoring.packed_file.varint import read_varint, varint

Array = np.ndarray
LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]
VALUES_PER_BYTE = 20_000  # compressors reach less: more values than that are a false claim
SMALL = 1 << 16
RAW, ZLIB, XZ = range(3)
WIDE = (torch.float32, torch.float64)  # what half precision rounds to fp16
DECODERS = {
    ZLIB: partial(zlib.decompressobj, -15),
    XZ: partial(lzma.LZMADecompressor, lzma.FORMAT_RAW, filters=LZMA),
}


def as_array(tensor: Tensor, *, half: bool = False) -> Array:
    """What is kept of a tensor: its values, with `half` those of wider floats in fp16; the bits of
    bfloat16, which numpy does not know."""
    plain = tensor.detach().cpu().contiguous()
    plain = plain.half() if half and plain.dtype in WIDE else plain
    return (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()


def compress(content: bytes) -> tuple[int, bytes]:
    """Method and bytes of the smallest of three forms."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = deflate.compress(content) + deflate.flush()
    forms = {RAW: content, ZLIB: deflated}
    if len(content) < SMALL or len(deflated) < 0.95 * len(content):  # else it only takes time
        forms[XZ] = lzma.compress(content, lzma.FORMAT_RAW, filters=LZMA)
    method = min(forms, key=lambda m: len(forms[m]))
    return method, forms[method]


def decompress(method: int, content: bytes, size: int) -> bytes:
    """Exactly `size` bytes, and never memory for more."""
    if method not in (RAW, *DECODERS):
        raise CheckpointError(f"unknown compression {method}")
    try:
        result = content if method == RAW else DECODERS[method]().decompress(content, size + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise CheckpointError(f"damaged compression ({error})") from None
    if len(result) != size:
        raise CheckpointError(f"{len(result)} bytes instead of {size}")
    return result


def _sort(order: Array, plane: Array) -> Array:
    """The order in which the next plane is stored: by this one, signs (its first bits) last."""
    return order[np.argsort(plane << 1 | plane >> 7, kind="stable")]


def _planes(values: Array) -> list[bytes]:
    """Bytes of each plane, the most significant one first."""
    if values.dtype.kind != "f":
        return [values.tobytes()]
    result, order = [], np.arange(len(values))
    for plane in values.view(np.uint8).reshape(len(values), -1).T[::-1]:
        result.append(plane[order].tobytes())
        order = _sort(order, plane[order])
    return result


def _join(planes: Sequence[bytes], dtype: np.dtype, count: int) -> Array:
    """The values whose planes these are."""
    if dtype.kind != "f":
        return np.frombuffer(planes[0], dtype)
    result, order = np.empty((count, len(planes)), dtype=np.uint8), np.arange(count)
    for i, content in enumerate(planes, start=1):
        plane = np.frombuffer(content, np.uint8)
        result[order, -i] = plane
        order = _sort(order, plane)
    return result.view(dtype).reshape(-1)


def _types(dtypes: Sequence[np.dtype]) -> list[np.dtype]:
    return list(dict.fromkeys(d.newbyteorder("<") for d in dtypes))


def pack_dense(tensors: Mapping[str, Array]) -> bytes:
    """The bytes of several tensors; their names, shapes and types are kept elsewhere."""
    result = b""
    for dtype in _types([t.dtype for t in tensors.values()]):
        same = [t.astype(dtype).reshape(-1) for t in tensors.values() if t.dtype == dtype]
        for plane in _planes(np.concatenate(same)):
            method, content = compress(plane)
            result += bytes([method]) + varint(len(content)) + content
    return result


def unpack_dense(
    content: bytes, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]
) -> dict[str, Array]:
    """The tensors again. Raises CheckpointError if the bytes are damaged."""
    result, at = {}, 0
    for dtype in _types([dtypes[name] for name in shapes]):
        names = [name for name in shapes if dtypes[name] == dtype]
        sizes = [math.prod(shapes[name]) for name in names]
        count = sum(sizes)
        if count > VALUES_PER_BYTE * len(content):
            raise CheckpointError(f"{len(content)} bytes cannot hold {count:,} values")
        planes, number = [], dtype.itemsize if dtype.kind == "f" else 1
        for _ in range(number):
            size, start = read_varint(content, at + 1)
            part = content[start : start + size]
            planes.append(decompress(content[at], part, count * dtype.itemsize // number))
            at = start + size
        parts = np.split(_join(planes, dtype, count), np.cumsum(sizes)[:-1])
        for name, part in zip(names, parts, strict=True):
            result[name] = part.astype(dtype.newbyteorder("=")).reshape(shapes[name])
    if at != len(content):
        raise CheckpointError("bytes after the last tensor")
    return result
