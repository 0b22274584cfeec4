"""Fields of a record that depend on the operation: weights, windows, constant channels."""

import math
from collections.abc import Callable

from torch import Tensor

from model_scoring.tracing import constant_channels
from model_scoring.tracing.aten_operations import KINDS
from model_scoring.tracing.layer_weights import examine
from model_scoring.tracing.operation_record import UNKNOWN, Tag, Tagger


def plain(args: tuple, record: dict, tag: Tagger) -> dict:
    return {}


def _layer(weight: Tensor, bias: Tag | None, source: Tag, *, groups: int, padded: bool) -> dict:
    """Fields of a convolution or linear layer. weight: (c_out, c_in / groups, ...)."""
    weights = examine(weight, groups)
    free, folded = _free_inputs(weights.counts, source.constants, padded=padded)
    return {
        "weight": weight,
        "weights": weights,
        "bias": bias is not None,
        "free_inputs": free,
        "folded": folded,
        "constants": constant_channels.of_filters(
            weight, weights.counts, bias and bias.value, source.constants, padded=padded
        ),
    }


def _free_inputs(
    counts: Tensor, constants: Tensor | None, *, padded: bool
) -> tuple[Tensor | None, bool]:
    """Inputs (c_in,) that take no arithmetic, and whether some of them add to the bias."""
    if constants is None:
        return None, False
    constant = ~constants.isnan() & (not padded)
    free = (constants == 0) | constant
    touched = (counts > 0).any(1).flatten()
    return (free if bool(free.any()) else None), bool((constant & (constants != 0) & touched).any())


def _optional(tensor: Tensor | None, tag: Tagger) -> Tag | None:
    return None if tensor is None else tag(tensor)


def _convolution(args: tuple, record: dict, tag: Tagger) -> dict:
    x, weight, bias, _, padding, _, transposed, _, groups = args
    value = tag(weight).value
    if transposed or value is None:
        return {"kind": UNKNOWN, "operation": "transposed convolution" if transposed else "conv"}
    return _layer(value, _optional(bias, tag), tag(x), groups=groups, padded=any(padding))


def _linear(args: tuple, record: dict, tag: Tagger) -> dict:
    *bias, x, weight = args
    value = tag(weight).value
    if value is None:  # both operands depend on the image
        return {"kind": "matmul", "window": weight.shape[0], "constants": None}
    numbers = tag(bias[0]) if bias else None
    fields = _layer(value.t(), numbers, tag(x), groups=1, padded=False)
    return fields | {"in_shape": tuple(x.shape)}


def _matmul(args: tuple, record: dict, tag: Tagger) -> dict:
    return {"window": args[-1].shape[-2]}


def _batchnorm(args: tuple, record: dict, tag: Tagger) -> dict:
    x, *state = args[:5]
    eps = next((a for a in reversed(args) if isinstance(a, float)), 0.0)
    values = [None if t is None else tag(t).value for t in state]
    return {"constants": constant_channels.of_batchnorm(tag(x).constants, x.shape[1], values, eps)}


def _covered(size: int, out: int) -> int:
    """Elements read along an axis by adaptive pooling, whose windows may overlap."""
    return sum(-(-(i + 1) * size // out) - i * size // out for i in range(out))


def _pool(args: tuple, record: dict, tag: Tagger) -> dict:
    """Input elements per output element."""
    before, after = record["in_shape"], record["out_shape"]
    if record["operation"] in ("max_pool2d_with_indices", "avg_pool2d"):
        size = args[1]
        return {"window": math.prod(size) if len(size) > 1 else size[0] ** 2}
    if "adaptive" in record["operation"]:
        axes = zip(before[-2:], after[-2:], strict=True)
        return {"window": math.prod(_covered(i, o) / o for i, o in axes)}
    return {"window": math.prod(before) / max(1, math.prod(after))}


SPECIAL: dict[str, Callable[[tuple, dict, Tagger], dict]] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "bmm": _matmul,
    "baddbmm": _matmul,
    **{name: _batchnorm for name, kind in KINDS.items() if kind == "batchnorm"},
    **{name: _pool for name, kind in KINDS.items() if kind in ("avgpool", "maxpool", "sum")},
}
