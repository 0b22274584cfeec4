"""Rules for layers and arithmetic: what each operation of torch becomes."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from model_scoring.export.c_source.program import steps
from model_scoring.export.c_source.program.graph import Ref
from model_scoring.export.c_source.program.lowering import Lowering, NoKernel, Padded
from model_scoring.export.c_source.program.steps import PIXEL, Activation, Size, Value


def _parts(low: Lowering, source: Value | Padded, size: Size, kernel: Size, *how: Size
           ) -> list[steps.Part]:  # fmt: skip
    """The phases of a convolution's input with the taps that ever meet it. size: of the output;
    how: stride, padding, dilation."""
    stride, padding, dilation = how
    if isinstance(source, Padded):
        padding = padding[0] + source.top, padding[1] + source.left
        source = source.value
    height, width = (-(-n // s) for n, s in zip(source.size, stride, strict=True))
    phases: dict[Size, list[steps.Tap]] = {}
    for index in range(kernel[0] * kernel[1]):
        at = divmod(index, kernel[1])
        places = [a * d - p for a, d, p in zip(at, dilation, padding, strict=True)]
        (y, top), (x, left) = (divmod(p, s) for p, s in zip(places, stride, strict=True))
        if -size[0] < y < height and -size[1] < x < width:
            phases.setdefault((top, left), []).append(steps.Tap(index, y, x))
    if not phases:
        raise NoKernel("whose filters never meet a pixel")
    if stride == (1, 1):
        inside = low.value(Ref(-1)) if source is low.program.image else source
        return [steps.Part(inside, taps) for taps in phases.values()]
    return [
        steps.Part(low.sample(source, (height, width), stride, start), taps)
        for start, taps in phases.items()
    ]


def convolution(low: Lowering, x: Ref, weight: Tensor, bias: Tensor | None, *rest: object) -> Value:
    """aten::convolution in two dimensions."""
    stride, padding, dilation, transposed, _, groups = rest
    shape = low.call.shape
    if isinstance(weight, Ref) or isinstance(bias, Ref) or transposed or len(shape) != 4:
        raise NoKernel("transposed, not in two dimensions, or with computed weights")
    filters, kernel = shape[1], tuple(weight.shape[2:])
    how = (tuple(stride), tuple(padding), tuple(dilation))
    shift = np.zeros(filters) if bias is None else _numbers(bias)
    common = {
        "weight": weight.float().reshape(filters, weight.shape[1], -1).numpy(),
        "scale": np.ones(filters),
        "shift": shift,
    }
    parts = _parts(low, low.source(x), shape[2:], kernel, *how)
    if steps.listed_values(common["weight"], groups) is None:
        for part in parts:  # no kernel of these multiplies bytes
            part.value = low.floats(part.value)
    out = low.program.new((1, filters), shape[2:])
    one_tap = len(parts) == len(parts[0].taps) == 1
    if out.size == parts[0].value.size == PIXEL and one_tap and groups == 1:
        common["weight"] = common["weight"][:, :, parts[0].taps[0].index]
        return low.add(steps.Linear(out=out, x=parts[0].value, **common))
    return low.add(steps.Convolution(out=out, parts=parts, groups=groups, **common))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().flatten().numpy()


def linear(low: Lowering, bias: object, x: Ref, weight: Tensor, *, beta: float = 1,
            alpha: float = 1) -> Value:  # fmt: skip
    """addmm: bias + x weight."""
    if not isinstance(x, Ref) or isinstance(weight, Ref) or isinstance(bias, Ref):
        raise NoKernel("of computed weights")
    value = low.source(x)
    value = low.value(x) if isinstance(value, Padded) or x.call < 0 else value
    if value.size != PIXEL or value.planes.shape[:-1] != (1,):
        raise NoKernel("of several rows")
    outputs = weight.shape[1]
    shift = np.zeros(outputs) if bias is None else beta * np.resize(_numbers(bias), outputs)
    out = low.program.new((1, outputs), PIXEL)
    weight = weight.float().t().contiguous().numpy()
    scale = np.full(outputs, float(alpha))
    return low.add(steps.Linear(out=out, x=value, weight=weight, scale=scale, shift=shift))


def quantize(low: Lowering, x: Ref, codes: steps.Codes) -> Value:
    """The step that made x stores bytes instead, if that is all that x is for."""
    step = low.open(x)
    if not isinstance(step, steps.Convolution | steps.Map):
        step = low.mapped(x)
        low.makers.pop(len(low.results))  # codes take nothing more
    step.out = low.program.new(step.out.planes.shape, step.out.size, codes)
    if step.activation.kind == "RELU" and codes.low == 0:
        step.activation = steps.IDENTITY  # clamping does that
    return step.out


def nothing(low: Lowering, *_: object, **__: object) -> None:
    """Of a call that another one contains."""


def product_of_matrices(low: Lowering, x: Ref, weight: Tensor) -> Value:
    return linear(low, None, x, weight)


def batchnorm(low: Lowering, x: Ref, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
               variance: Tensor, *rest: float) -> tuple[Value]:  # fmt: skip
    scale = 1 / np.sqrt(_numbers(variance) + rest[-1])
    scale = scale if weight is None else scale * _numbers(weight)
    shift = -_numbers(mean) * scale
    return (_affine(low, x, scale, shift if bias is None else shift + _numbers(bias)),)


# arithmetic


def _affine(low: Lowering, x: Ref, scale: np.ndarray | float, shift: np.ndarray | float) -> Value:
    """scale x + shift, channel by channel."""
    step = low.open(x)
    if step is None or not step.plain:
        step = low.mapped(x)
    step.affine(scale, shift)
    return low.remember(step)


def _by_channel(low: Lowering, constant: object) -> np.ndarray | float:
    """A constant operand as a number, or one for each channel of the call's result."""
    if not isinstance(constant, Tensor):
        return float(constant)
    if constant.numel() == 1:
        return float(constant)
    rank, shape = len(low.call.shape), tuple(constant.shape)
    shape = (1,) * (rank - len(shape)) + shape
    if rank < 2 or shape[1] != low.call.shape[1] or constant.numel() != shape[1]:
        raise NoKernel("of a constant that differs from pixel to pixel")
    return _numbers(constant)


def add(low: Lowering, x: object, y: object, *, alpha: float = 1) -> Value:
    if isinstance(x, Ref) and isinstance(y, Ref):
        return _sum_of_values(low, x, y, alpha)
    if isinstance(x, Ref):
        return _affine(low, x, 1.0, alpha * _by_channel(low, y))
    return _affine(low, y, float(alpha), _by_channel(low, x))


def _sum_of_values(low: Lowering, x: Ref, y: Ref, alpha: float) -> Value:
    if alpha != 1:
        step = low.mapped(y)
        step.affine(float(alpha), 0.0)
        other = step.out
    else:
        other = low.value(y)
    if x != y and alpha == 1:
        both = [(low.open(a), b) for a, b in ((x, y), (y, x))]
        both = [(step, b) for step, b in both if step is not None and step.plain]
        order = low.program.steps.index
        for step, b in sorted(both, key=lambda pair: -order(pair[0])):
            rest = low.value(b)
            if rest.size == step.out.size and rest.planes.shape == step.out.planes.shape:
                step.add = rest
                low.program.steps.remove(step)  # now it has to wait for the other one
                low.program.steps.append(step)
                return low.remember(step)
    return _two(low, low.value(x), other, "SUM")


def _two(low: Lowering, x: Value, y: Value, operation: str) -> Value:
    if x.size == PIXEL != y.size:
        x, y = y, x
    if x.planes.shape != y.planes.shape or y.size not in (x.size, PIXEL):
        raise NoKernel("of two values of different shapes")
    out, count = low.program.new(x.planes.shape, x.size), x.planes.size
    made = steps.Map(out=out, x=x, scale=np.ones(count), shift=np.zeros(count), add=y)
    made.operation = operation
    return low.add(made)


def difference(low: Lowering, x: object, y: object, *, alpha: float = 1) -> Value:
    return add(low, x, y, alpha=-alpha)


def product(low: Lowering, x: object, y: object) -> Value:
    if isinstance(x, Ref) and isinstance(y, Ref):
        return _two(low, low.value(x), low.value(y), "PRODUCT")
    x, y = (x, y) if isinstance(x, Ref) else (y, x)
    return _affine(low, x, _by_channel(low, y), 0.0)


def quotient(low: Lowering, x: object, y: object, **options: object) -> Value:
    if isinstance(y, Ref) or options.get("rounding_mode"):
        raise NoKernel("by what depends on the image")
    return _affine(low, x, 1 / _by_channel(low, y), 0.0)


def activation(low: Lowering, x: Ref, kind: str, low_: float = 0.0, high: float = 0.0) -> Value:
    step = low.open(x)
    if step is None or step.activation != steps.IDENTITY:
        step = low.mapped(x)
    step.activation = Activation(kind, float(low_), float(high))
    return low.remember(step)


def simple(kind: str) -> Callable:
    return lambda low, x, *_, **__: activation(low, x, kind)


def clamp(low: Lowering, x: Ref, minimum: float | None = None, maximum: float | None = None,
           **named: float) -> Value:  # fmt: skip
    if low.call.name == "hardtanh":
        minimum, maximum = (-1 if minimum is None else minimum), (1 if maximum is None else maximum)
    minimum, maximum = named.get("min", minimum), named.get("max", maximum)
    if minimum == 0 and maximum is None:
        return activation(low, x, "RELU")
    largest = float(np.finfo(np.float32).max)
    return activation(low, x, "CLAMP", -largest if minimum is None else minimum,
                       largest if maximum is None else maximum)  # fmt: skip


def leaky_relu(low: Lowering, x: Ref, slope: float = 0.01) -> Value:
    return activation(low, x, "LEAKY_RELU", slope)


def elu(low: Lowering, x: Ref, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        raise NoKernel("with another scale of its input")
    value = activation(low, x, "ELU", alpha)
    if scale != 1:
        raise NoKernel("with another scale")
    return value


def gelu(low: Lowering, x: Ref, *, approximate: str = "none") -> Value:
    if approximate != "none":
        raise NoKernel("approximated")
    return activation(low, x, "GELU")
