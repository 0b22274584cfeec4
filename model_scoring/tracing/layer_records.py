"""What a record says beyond its shapes: weights, windows, and the channels of layers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model_scoring.tracing.aten_operations import OPERATIONS
from model_scoring.tracing.channel_labels import Labels
from model_scoring.tracing.channel_rules import Call, Shape
from model_scoring.tracing.constant_channels import NAN, of_batchnorm, of_filters
from model_scoring.tracing.layer_weights import examine
from model_scoring.tracing.operation_record import UNKNOWN, Reads, Tag

Fields = dict[str, object]
TagOf = Callable[[Tensor], Tag]


def plain(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    """Nothing more."""
    return {}


def vector(known: Tensor | None, shape: Shape) -> Tensor | None:
    """Labels or constants of an activation (N, C, ...) as (C,); None if they are not one for each
    channel."""
    if known is None or len(shape) < 2 or known.dim() != len(shape) or known.numel() != shape[1]:
        return None
    return known.flatten() if known.shape[1] == shape[1] else None


def _layer(
    call: Call, weight: Tensor, bias: Tensor | None, x: Tensor, labels: Labels, tag: TagOf
) -> Fields:
    """Fields of a convolution or linear layer. weight: (c_out, c_in / groups, ...)."""
    groups, padded = call.arguments.get("groups", 1), any(call.arguments.get("padding", ()))
    weights = examine(weight, groups)
    bias = None if bias is None else tag(bias)
    known, shape, count = tag(x).channels, tuple(x.shape), len(weight)
    seen = known and vector(known.labels, shape)
    if understood := seen is not None:
        constants = vector(known.constants, shape)
    else:  # channels in another dimension, or those of a tensor that was written to
        seen, constants = labels.new(shape[1], 1, pinned=True), torch.full(shape[1:2], NAN)
        labels.pin(known.labels if known else seen)
    own = understood and 1 < groups == len(seen) == count
    made = seen if own else labels.new(count, 1, pinned=not understood)
    if groups > 1 and not own:
        labels.balanced += [seen.reshape(groups, -1), made.reshape(groups, -1)]
    if bias is None or bias.value is not None:
        value = bias and bias.value
        made_of = of_filters(weight, weights.counts, value, constants, padded=padded)
    else:  # it comes from the image
        made_of = torch.full((count,), NAN)
    return {
        "weight": weight,
        "weights": weights,
        "bias": bias is not None,
        "reads": Reads(seen, constants, padded, own),
        "labels": made,
        "layer": call.layer,
        "constants": made_of,
    }


def _convolution(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    given = call.arguments
    weight = tag(given["weight"]).value
    if given["transposed"]:
        return {"kind": UNKNOWN, "operation": "transposed convolution"}
    if weight is None:
        return {"kind": UNKNOWN, "operation": "conv"}
    return _layer(call, weight, given["bias"], given["input"], labels, tag)


def _linear(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    """addmm(bias, x, weight) or mm(x, weight), the weight transposed."""
    given = call.arguments
    x, weight = given.get("mat1", given["self"]), given["mat2"]
    value = tag(weight).value
    if value is None:  # both operands depend on the image
        return {"kind": "matmul", "window": weight.shape[0]}
    bias = given["self"] if "mat1" in given else None
    fields = _layer(call, value.t(), bias, x, labels, tag)
    # F.linear of more than two dimensions: the channels come last, where no layer is narrowed
    if call.caller.name == "linear" and call.caller.arguments[0].dim() != 2:
        labels.pin(fields["reads"].labels)
        labels.pin(fields["labels"])
    return fields | {"in_shape": tuple(x.shape)}


def _matmul(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    return {"window": call.inputs[-1].shape[-2]}


def _batchnorm(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    x, given = call.inputs[0], call.arguments
    known = tag(x).channels
    seen = known and vector(known.labels, tuple(x.shape))
    if seen is None:
        return {}
    names = ("weight", "bias", "running_mean", "running_var")
    state = [None if given.get(name) is None else tag(given[name]).value for name in names]
    constants = vector(known.constants, tuple(x.shape))
    constants = of_batchnorm(constants, state, given.get("eps", given.get("epsilon")))
    return {"labels": seen, "layer": call.layer, "constants": constants}


def _covered(size: int, out: int) -> int:
    """Elements read along an axis by adaptive pooling, whose windows may overlap."""
    return sum(-(-(i + 1) * size // out) - i * size // out for i in range(out))


def _pool(call: Call, shape: Shape, labels: Labels, tag: TagOf) -> Fields:
    """Input elements per output element."""
    before = tuple(call.inputs[0].shape)
    if call.name in ("max_pool2d_with_indices", "avg_pool2d"):
        size = call.arguments["kernel_size"]
        return {"window": math.prod(size) if len(size) > 1 else size[0] ** 2}
    if "adaptive" in call.name:
        axes = zip(before[-2:], shape[-2:], strict=True)
        return {"window": math.prod(_covered(i, o) / o for i, o in axes)}
    return {"window": math.prod(before) / max(1, math.prod(shape))}


LAYERS = ("convolution", "linear", "batchnorm")  # ways that have their rules here
SPECIAL: dict[str, Callable[[Call, Shape, Labels, TagOf], Fields]] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "bmm": _matmul,
    "baddbmm": _matmul,
    **{name: _batchnorm for name, row in OPERATIONS.items() if row.kind == "batchnorm"},
    **{
        name: _pool for name, row in OPERATIONS.items() if row.kind in ("avgpool", "maxpool", "sum")
    },
}
