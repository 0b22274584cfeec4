"""Rules for pooling, and for rearrangements of planes, most of which cost nothing."""

import math

import numpy as np

from model_scoring.export.c_source.program import steps
from model_scoring.export.c_source.program.graph import Ref
from model_scoring.export.c_source.program.lowering import Lowering, NoKernel, Padded
from model_scoring.export.c_source.program.steps import PIXEL, Size, Value


def _pair(numbers: list[int] | int) -> Size:
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return tuple(numbers * 2)[:2] if len(numbers) == 1 else tuple(numbers)


def _pool(low: Lowering, x: Ref, kernel: list, stride: list, padding: list, dilation: list,
          **how: object) -> Value:  # fmt: skip
    if len(low.call.shape) != 4:
        raise NoKernel("not of images")
    value = low.value(x)
    stride = stride or kernel
    sides = (_pair(numbers) for numbers in (kernel, stride, padding, dilation))
    windows = tuple(steps.Window(*side) for side in zip(*sides, strict=True))
    out = low.program.new(value.planes.shape, low.call.shape[2:])
    return low.add(steps.Pool(out=out, x=value, windows=windows, **how))


def max_pool(low: Lowering, x: Ref, kernel: list, stride: list = (), padding: list = (0,),
              dilation: list = (1,), ceil: bool = False) -> tuple[Value]:  # fmt: skip
    return (_pool(low, x, kernel, stride, padding, dilation, maximum=True),)


def avg_pool(low: Lowering, x: Ref, kernel: list, stride: list = (), padding: list = (0,),
              ceil: bool = False, count_include_pad: bool = True, divisor: int | None = None
              ) -> Value:  # fmt: skip
    how = {"with_padding": count_include_pad, "divisor": float(divisor or 0)}
    return _pool(low, x, kernel, stride, padding, (1,), maximum=False, **how)


def adaptive_avg_pool(low: Lowering, x: Ref, size: list) -> Value:
    value = low.value(x)
    if value.size == tuple(low.call.shape[2:]):
        return value
    if tuple(low.call.shape[2:]) == PIXEL:
        return low.add(steps.Mean(out=low.program.new(value.planes.shape, PIXEL), x=value))
    return _pool(low, x, [1], [], [0], [1], maximum=False, adaptive=True)


def adaptive_max_pool(low: Lowering, x: Ref, size: list) -> tuple[Value]:
    return (_pool(low, x, [1], [], [0], [1], maximum=True, adaptive=True),)


def mean(low: Lowering, x: Ref, dims: list | None = None, keepdim: bool = False, **_: object
          ) -> Value:  # fmt: skip
    value = low.value(x)
    rank = value.planes.ndim + 2
    if not dims or {d % rank for d in dims} != {rank - 2, rank - 1} or low.call.shape[:1] != (1,):
        raise NoKernel("over other dimensions than height and width")
    out = low.program.new(value.planes.shape, PIXEL)
    low.add(steps.Mean(out=out, x=value))
    return out


def view(low: Lowering, x: Ref, *_: object, **__: object) -> Value:
    """Any reshaping; only that of whole images to vectors has to copy."""
    value, shape = low.value(x), low.call.shape
    if len(shape) > 2 and value.size == tuple(shape[-2:]):
        return Value(value.planes.reshape(shape[:-2]), value.size)
    if value.size != PIXEL:
        if len(shape) > 2 and tuple(shape[-2:]) != PIXEL:
            raise NoKernel("of height and width")
        count = value.planes.size * math.prod(value.size)
        flat = steps.Flatten(out=low.program.new((count,), PIXEL), x=value)
        value = low.add(flat)
    if len(shape) > 2 and tuple(shape[-2:]) != PIXEL:
        raise NoKernel("to height and width")
    return Value(value.planes.reshape(shape if len(shape) <= 2 else shape[:-2]), PIXEL)


def permute(low: Lowering, x: Ref, dims: list) -> Value:
    value = low.value(x)
    rank = low.rank(x)
    dims = [d % rank for d in dims]
    inner = 0 if rank <= 2 else 2
    if dims[rank - inner :] != list(range(rank - inner, rank)):
        raise NoKernel("of height and width")
    return Value(value.planes.transpose(dims[: rank - inner]), value.size)


def cut(low: Lowering, x: Ref, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Value:  # fmt: skip
    source = low.source(x)
    source = low.value(x) if isinstance(source, Padded) else low.floats(source)
    dim %= low.rank(x)
    if dim < source.planes.ndim:
        value = low.value(x)
        where = (slice(None),) * dim + (slice(start, end, step),)
        return Value(value.planes[where], value.size)
    axis = dim - source.planes.ndim
    start = slice(start, end, step).indices(source.size[axis])[0]
    return _cut_pixels(low, x, source, axis, start, step)


def _cut_pixels(low: Lowering, x: Ref, source: Value, axis: int, start: int, step: int) -> Value:
    """Rows or columns of a value; of one that was cut before, both at once."""
    begin, every = [0, 0], [1, 1]
    begin[axis], every[axis] = start, step
    last = low.program.steps[-1] if low.program.steps else None
    lone = x.call >= 0 and low.graph.calls[x.call].users == 1
    lone = lone and sum(found is source for found in low.results) == 1  # or others cut the same
    if lone and isinstance(last, steps.Sample) and last.out is source and last.outside == 0.0:
        low.program.steps.pop()
        low.samples = {k: v for k, v in low.samples.items() if v is not source}
        begin = [a + b * s for a, b, s in zip(last.start, begin, last.step, strict=True)]
        every = [a * b for a, b in zip(last.step, every, strict=True)]
        source = last.x
    return low.sample(source, tuple(low.call.shape[-2:]), tuple(every), tuple(begin))


def select(low: Lowering, x: Ref, dim: int, index: int) -> Value:
    value = low.value(x)
    if dim % low.rank(x) >= value.planes.ndim:
        raise NoKernel("of a row or column")
    return Value(np.take(value.planes, index, dim % low.rank(x)), value.size)


def split(low: Lowering, x: Ref, sizes: list | int, dim: int = 0) -> tuple[Value, ...]:
    value = low.value(x)
    dim %= low.rank(x)
    if dim >= value.planes.ndim:
        raise NoKernel("of rows or columns")
    total = value.planes.shape[dim]
    sizes = [sizes] * (total // sizes) if isinstance(sizes, int) else sizes
    ends = np.cumsum(sizes)[:-1]
    return tuple(Value(part, value.size) for part in np.split(value.planes, ends, dim))


def concatenation(low: Lowering, values: list, dim: int = 0) -> Value:
    found = [low.value(v) for v in values]
    dim %= len(low.call.shape)
    if dim >= found[0].planes.ndim:
        raise NoKernel("of rows or columns")
    return Value(np.concatenate([v.planes for v in found], dim), found[0].size)


def pad(low: Lowering, x: Ref, pads: list, value: float = 0) -> Value | Padded:
    source = low.source(x)
    source = low.value(x) if isinstance(source, Padded) else source
    rank = low.rank(x)
    sides = [tuple(pads[i : i + 2]) for i in range(0, len(pads), 2)][::-1]
    sides = [(0, 0)] * (rank - len(sides)) + sides
    outer, inner = sides[: source.planes.ndim], sides[source.planes.ndim :]
    if any(pair != (0, 0) for pair in outer) or value != 0 or min(pads) < 0:
        source = low.floats(source)
    if any(pair != (0, 0) for pair in outer):
        image = low.program.image  # of which nothing is inside: a plane of one value
        one = Value(image.planes[:1, :1], image.size)
        zero = low.sample(one, source.size, start=image.size, outside=float(value))
        if min(min(pair) for pair in outer) < 0:
            raise NoKernel("that takes channels away")
        planes = np.pad(source.planes, outer, constant_values=int(zero.planes.item()))
        source = Value(planes, source.size)
    if all(pair == (0, 0) for pair in inner):
        return source
    (top, bottom), (left, right) = inner
    size = source.size[0] + top + bottom, source.size[1] + left + right
    if value == 0 and min(top, bottom, left, right) >= 0:
        return Padded(source, top, left, size)
    return low.sample(source, size, start=(-top, -left), outside=float(value))


def expand(low: Lowering, x: Ref, sizes: list, **_: object) -> Value:
    value, shape = low.value(x), low.call.shape
    if len(shape) > 2 and tuple(shape[-2:]) != value.size:
        raise NoKernel("of height and width")
    return Value(np.broadcast_to(value.planes, shape[:-2] if len(shape) > 2 else shape), value.size)


def same(low: Lowering, x: Ref, *_: object, **__: object) -> object:
    if step := low.open(x):
        low.makers[len(low.results)] = step
    return low.source(x) if x.call >= 0 else low.value(x)


def getitem(low: Lowering, x: Ref, index: int) -> Value:
    parts = low.results[x.call]
    if not isinstance(parts, tuple) or index >= len(parts):
        raise NoKernel("of a second result")
    if step := low.open(x):
        low.makers[len(low.results)] = step
    return parts[index]
