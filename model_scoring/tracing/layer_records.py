"""What a record says beyond its shapes: weights and channels of layers, windows of pooling."""

import math

import torch
from torch import Tensor

from model_scoring.tracing.aten_operations import UNKNOWN
from model_scoring.tracing.channel_rules import Call, Known
from model_scoring.tracing.constant_channels import NAN, of_batchnorm, of_filters
from model_scoring.tracing.layer_weights import examine
from model_scoring.tracing.operation_record import Channels, Reads, Tag

Fields = dict[str, object]


def _value(operand: Tag | None) -> Tensor | None:
    """Numbers of an operand beside the weights: NaN if they come from the image, None if there
    is none."""
    return operand and (torch.tensor(NAN) if operand.value is None else operand.value)


def _weighted(call: Call, weight: Tensor, x: str, bias: str) -> tuple[Fields, list[Channels]]:
    """A convolution or linear layer: weight (c_out, c_in / groups, ...), the others by name."""
    labels, groups = call.labels, call.arguments.get("groups", 1)
    padded, weights = any(call.arguments.get("padding", ())), examine(weight, groups)
    channels, shape = call.tag(x).channels, tuple(call.arguments[x].shape)
    seen = channels and channels.vectors(shape)
    understood = seen is not None
    if not understood:  # channels in another dimension, or those of a tensor that was written to
        seen = Channels.varying(labels.new(shape[1], 1, pinned=True))
        if channels is not None:
            labels.pin(channels.labels)
    # a filter for each input makes no channel of its own: both can only leave together
    depthwise = understood and 1 < groups == shape[1] == len(weight)
    made = seen.labels if depthwise else labels.new(len(weight), 1, pinned=not understood)
    if groups > 1 and not depthwise:  # its groups have to stay equally large
        labels.balanced += [side.reshape(groups, -1) for side in (seen.labels, made)]
    added = call.tag(bias)
    constants = of_filters(weight, weights.counts, _value(added), seen.constants, padded=padded)
    fields = {
        "weight": weight,
        "weights": weights,
        "bias": added is not None,
        "reads": Reads(seen.labels, seen.constants, padded, depthwise),
        "layer": call.layer,
    }
    return fields, [Channels(made, constants).spread(call.shapes[0])]


def _convolution(call: Call) -> tuple[Fields, Known]:
    # without rules: their arithmetic is not counted, and they are named in a warning
    weight = call.tag("weight").value
    if call.arguments["transposed"]:
        return {"kind": UNKNOWN, "operation": "transposed convolution"}, None
    if weight is None:  # it comes from the image
        return {"kind": UNKNOWN, "operation": "conv"}, None
    return _weighted(call, weight, "input", "bias")


def _linear(call: Call) -> tuple[Fields, Known]:
    """addmm(bias, x, weight) or mm(x, weight), the weight transposed."""
    weight = call.tag("mat2").value
    if weight is None:  # both operands depend on the image
        return {"kind": "matmul"}, None
    x, bias = ("mat1", "self") if "mat1" in call.arguments else ("self", "")
    fields, made = _weighted(call, weight.t(), x, bias)
    # F.linear of more than two dimensions: the channels come last, where no layer is narrowed
    if call.caller.name == "linear" and call.caller.arguments[0].dim() != 2:
        call.labels.pin(fields["reads"].labels)
        call.labels.pin(made[0].labels)
    return fields | {"in_shape": tuple(call.arguments[x].shape)}, made


def _batchnorm(call: Call) -> tuple[Fields, Known]:
    channels = call.tags[0].channels
    seen = channels and channels.vectors(tuple(call.inputs[0].shape))
    if seen is None:
        return {}, None
    tags = map(call.tag, ("weight", "bias", "running_mean", "running_var"))
    eps = call.arguments.get("eps", call.arguments.get("epsilon"))
    constants = of_batchnorm(seen.constants, list(map(_value, tags)), eps)
    made = Channels(seen.labels, constants).spread(call.shapes[0])
    return {"layer": call.layer}, [made] * len(call.shapes)


# by way, as channel_rules.RULES
LAYERS = {"convolution": _convolution, "linear": _linear, "batchnorm": _batchnorm}


def window(call: Call, kind: str) -> float:
    """Pooling: input elements per output element; matmul: length of the products; else 1."""
    if kind == "matmul":
        return call.inputs[-1].shape[-2]
    if kind not in ("avgpool", "maxpool", "sum"):
        return 1
    before, after = tuple(call.inputs[0].shape), call.shapes[0]
    if call.name in ("max_pool2d_with_indices", "avg_pool2d"):
        size = call.arguments["kernel_size"]
        return math.prod(size) if len(size) > 1 else size[0] ** 2
    if "adaptive" in call.name:
        read = 1.0  # along each axis: its windows may overlap
        for n, out in zip(before[-2:], after[-2:], strict=True):
            read *= sum(-(-(i + 1) * n // out) - i * n // out for i in range(out)) / out
        return read
    return math.prod(before) / max(1, math.prod(after))
