"""What a record says beyond its shapes: weights and channels of layers, windows of pooling."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model_scoring.tracing.aten_operations import UNKNOWN
from model_scoring.tracing.channel_rules import Call, Known
from model_scoring.tracing.constant_channels import NAN, of_batchnorm, of_filters
from model_scoring.tracing.layer_weights import examine
from model_scoring.tracing.operation_kinds import factor
from model_scoring.tracing.operation_record import Channels, Reads, Tag

Fields = dict[str, object]


def _value(operand: Tag | None) -> Tensor | None:
    """Numbers of an operand beside the weights: NaN if they come from the image, None if there
    is none."""
    return operand and (torch.tensor(NAN) if operand.value is None else operand.value)


@dataclass(frozen=True)
class _Layer:
    """A convolution or product with stored weights."""

    weight: Tensor  # (c_out, c_in / groups, ...)
    groups: int
    seen: Channels | None  # (c_in,) of its input; None: not one for each
    added: Tag | None  # its bias, or another operand that it adds to the result
    bias: Tensor | None = None  # (c_out,) that operand, if it is one stored value a filter
    factor: float = 1  # of the added operand
    padded: bool = False  # with zeros


def _weighted(call: Call, layer: _Layer) -> tuple[Fields, Channels, bool]:
    """Fields of its record, the channels that it makes, (c_out,), and whether each of its inputs
    was known to be a channel."""
    labels, weight, groups, seen = call.labels, layer.weight, layer.groups, layer.seen
    weights, inputs = examine(weight, groups), groups * weight.shape[1]
    understood = seen is not None
    if not understood:
        seen = Channels.varying(labels.new(inputs, 1, pinned=True))
    depthwise = understood and 1 < groups == inputs == len(weight)
    made = labels.new(len(weight), 1, pinned=not understood)
    if depthwise:  # a filter for each input
        labels.bound.append((seen.labels, made))
    elif groups > 1:  # its groups have to stay equally large
        labels.balanced += [side.reshape(groups, -1) for side in (seen.labels, made)]
    fields = {
        "weight": weight,
        "weights": weights,
        "bias": layer.bias,
        "stores": (),
        "reads": Reads(seen.labels, seen.constants, layer.padded, depthwise),
        "layer": call.layer,
    }
    bias = layer.bias
    if layer.added is not None and bias is None:  # another number at each position
        fields |= {"extra": (factor(layer.factor), 1), "stores": layer.added.stores}
        labels.fix(made)
        bias = torch.tensor(NAN)
    if layer.added is not None and layer.added.channels is not None:
        labels.pin(layer.added.channels.labels)
    constants = of_filters(weight, weights.counts, bias, seen.constants, padded=layer.padded)
    return fields, Channels(made, constants), understood


def _ignored(channels: Channels | None, call: Call) -> None:
    """Channels in another dimension, or those of a tensor that was written to, are needed."""
    if channels is not None:
        call.labels.pin(channels.labels)


def _convolution(call: Call) -> tuple[Fields, Known]:
    if call.arguments["transposed"]:  # no rule: its arithmetic is not counted, a warning names it
        return {"kind": UNKNOWN, "operation": "transposed convolution"}, None
    tag, added, shape = call.tag("weight"), call.tag("bias"), tuple(call.arguments["weight"].shape)
    if tag.value is None:  # it comes from the image
        fields = {"kind": "matmul", "window": math.prod(shape[1:])}
        return fields | {"extra": (0, int(added is not None))}, None
    x, groups = call.tag("input"), call.arguments["groups"]
    seen = x.channels and x.channels.vectors(tuple(call.arguments["input"].shape))
    if seen is None:
        _ignored(x.channels, call)
    bias = _value(added) if added is not None and not added.from_image else None
    padded = any(call.arguments["padding"])
    bias = bias if bias is None else bias.expand(shape[0])
    layer = _Layer(tag.value, groups, seen, added, bias, padded=padded)
    fields, made, _ = _weighted(call, layer)
    return fields, [made.spread(call.shapes[0])]


# of a product of matrices: what is added, and both factors
FACTORS = {
    **dict.fromkeys(("mm", "bmm"), ("", "self", "mat2")),
    "addmm": ("self", "mat1", "mat2"),
    "baddbmm": ("self", "batch1", "batch2"),
    "mv": ("", "self", "vec"),
    "addmv": ("self", "mat", "vec"),
}


def _matrices(factor: Tensor, flipped: bool) -> Tensor:
    """A factor, or what broadcasts to it, as (groups, rows, columns). Vectors are columns."""
    factor = factor[:, None] if factor.dim() == 1 else factor
    factor = factor.mT if flipped else factor
    return factor[None] if factor.dim() == 2 else factor


def _product(call: Call) -> tuple[Fields, Known]:
    """alpha (left @ right) + beta added: a layer if one side is stored. Weights on the left make
    the transpose of a layer's result."""
    added, left, right = FACTORS[call.name]
    beta, alpha = call.arguments.get("beta", 1), call.arguments.get("alpha", 1)
    added = call.tag(added) if beta != 0 else None
    flipped = call.tag(right).from_image
    x, weight = (right, left) if flipped else (left, right)
    value, image = call.tag(weight).value, _matrices(call.arguments[x], flipped)
    if value is None:  # both operands depend on the image
        extra = factor(alpha) + (factor(beta) if added else 0), int(added is not None)
        return {"kind": "matmul", "window": image.shape[-1], "extra": extra}, None
    value = _matrices(value, flipped).mT  # (groups, c_out / groups, c_in / groups)
    value, groups = value * alpha if alpha != 1 else value, len(value)
    value = value[0] if groups == 1 else value.flatten(0, 1)
    seen = _columns(call.tag(x).channels, image, flipped)
    bias = _bias(call, added, flipped, beta)
    fields, made, known = _weighted(call, _Layer(value, groups, seen, added, bias, beta))
    if not known:
        _ignored(call.tag(x).channels, call)
    fields |= {
        "in_shape": (image.shape[1], groups * image.shape[2]),
        "out_shape": (image.shape[1], len(value)),
        "labels": made.labels,
        "constants": made.constants,
    }
    linear = call.caller.given(0, "input") if call.caller.name == "linear" else None
    if linear is None or linear.dim() != 2:  # nobody narrows a layer there
        for side in (made, seen) if known else (made,):
            call.labels.fix(side.labels)
    return fields, [_result(made, groups, len(call.shapes[0]), flipped)] if known else None


def _columns(channels: Channels | None, image: Tensor, flipped: bool) -> Channels | None:
    """Channels (c_in,) of the factor that is not stored, if those are its columns."""
    if channels is None:
        return None
    labels, constants = (_matrices(t, flipped) for t in (channels.labels, channels.constants))
    if labels.shape[1] > 1:
        return None
    shape = len(image), 1, image.shape[-1]
    return Channels(*(part.expand(shape).flatten() for part in (labels, constants)))


def _bias(call: Call, added: Tag | None, flipped: bool, beta: float) -> Tensor | None:
    """(c_out,) what a product adds; None if it is not one stored value a filter."""
    if added is None or added.from_image:
        return None
    value = _matrices(_value(added).expand(call.shapes[0]), flipped)
    if value.shape[1] > 1 and value.stride(1):
        return None
    value = value[:, 0].flatten()
    return value * beta if beta != 1 else value


def _result(made: Channels, groups: int, rank: int, flipped: bool) -> Channels:
    """The channels (c_out,) of a product where its result, of so many dimensions, has them."""
    parts = (part.reshape(groups, 1, -1) for part in (made.labels, made.constants))
    parts = (part.mT if flipped else part for part in parts)
    return Channels(
        *(part if rank == 3 else part[0] if rank == 2 else part[0, :, 0] for part in parts)
    )


# of the forms of BatchNorm those that take no flag
TRAINING = {
    "_batch_norm_with_update": True,
    "_batch_norm_no_update": False,
    "_native_batch_norm_legit_no_training": False,
}


def _batchnorm(call: Call) -> tuple[Fields, Known]:
    """By stored statistics; by the image's own ones it is no part of a layer, and normalises as
    layer and group norms do."""
    tags = tuple(map(call.tag, ("weight", "bias", "running_mean", "running_var")))
    if TRAINING.get(call.name, call.arguments.get("training")) or None in tags[2:]:
        return {"kind": "norm"}, None
    channels = call.tags[0].channels
    seen = channels and channels.vectors(tuple(call.inputs[0].shape))
    state, fields = tuple(map(_value, tags)), {"layer": call.layer}
    if any(tag is not None and tag.value is None for tag in tags):
        # scale and shift come from the image, so that whatever else is stored stays apart
        stored = (tag.value for tag in tags if tag is not None and tag.value is not None)
        fields |= {"stores": tuple(stored), "layer": ""}
        for tag in tags:
            _ignored(tag and tag.channels, call)
    else:
        affine = (tag for tag in tags[:2] if tag is not None and tag.parameters)
        fields |= {"stores": tuple(tag.value for tag in affine), "state": state}
    if seen is None:
        return fields, None
    if not fields["layer"]:
        call.labels.fix(seen.labels)
    eps = call.arguments.get("eps", call.arguments.get("epsilon"))
    constants = of_batchnorm(seen.constants, list(state), eps)
    made = Channels(seen.labels, constants).spread(call.shapes[0])
    return fields, [made] * len(call.shapes)


# by way, as channel_rules.RULES
LAYERS = {"convolution": _convolution, "product": _product, "batchnorm": _batchnorm}


def window(call: Call, kind: str) -> float:
    """Pooling: input elements per output element; else 1."""
    if kind not in ("avgpool", "maxpool", "sum", "variance", "length"):
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
