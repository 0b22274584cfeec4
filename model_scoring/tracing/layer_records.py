"""What a record says beyond its shapes: weights and channels of layers, windows of pooling."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_scoring.tracing.aten_operations import UNKNOWN
from model_scoring.tracing.channel_labels import NAN, Channels
from model_scoring.tracing.channel_rules import Call, Known
from model_scoring.tracing.constant_channels import of_batchnorm, of_filters
from model_scoring.tracing.layer_weights import examine, integers
from model_scoring.tracing.operation_kinds import factor
from model_scoring.tracing.operation_record import Reads, Tag

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
    image: Tag  # its input
    seen: Channels | None  # (c_in,) of its input; None: not one for each
    added: Tag | None  # its bias, or another operand that it adds to the result
    bias: Tensor | None  # (c_out,) that operand, if it is one stored value a filter
    factor: float = 1  # of the added operand
    padded: bool = False  # with zeros
    step: Tensor | None = None  # of which the weights may be multiples


def _weighted(call: Call, layer: _Layer) -> tuple[Fields, Channels]:
    """Fields of its record, and the channels (c_out,) that it makes."""
    labels, weight, groups, seen = call.labels, layer.weight, layer.groups, layer.seen
    bits, steps = integers(weight, layer.step)
    weights = replace(examine(weight, groups), bits=bits, steps=steps)
    inputs = groups * weight.shape[1]
    depthwise = seen is not None and 1 < groups == inputs == len(weight)
    if seen is None:  # channels in another dimension
        labels.pin(layer.image.channels)
        seen, made = labels.unknown(inputs, 1), labels.unknown(len(weight), 1).labels
    else:
        made = labels.new(len(weight), 1)
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
    bias, added = layer.bias, layer.added
    if added is not None and bias is None:  # another number at each position
        fields |= {"extra": (factor(layer.factor), 1), "stores": added.stores}
        labels.fix(made)
        bias = torch.tensor(NAN)
    labels.pin(added and added.channels)
    constants = of_filters(weight, weights.counts, bias, seen.constants, padded=layer.padded)
    return fields, Channels(made, constants)


def _convolution(call: Call) -> tuple[Fields, Known]:
    if call.arguments["transposed"]:  # no rule: its arithmetic is not counted, a warning names it
        return {"kind": UNKNOWN, "operation": "transposed convolution"}, None
    weight, added, x = map(call.tag, ("weight", "bias", "input"))
    if weight.value is None:  # it comes from the image
        products = math.prod(call.arguments["weight"].shape[1:])
        return {"kind": "matmul", "window": products, "extra": (0, int(added is not None))}, None
    seen = x.channels and x.channels.vectors(tuple(call.arguments["input"].shape))
    bias = _value(added) if added is not None and not added.from_image else None
    bias = bias if bias is None else bias.expand(len(weight.value))
    padded = any(call.arguments["padding"])
    layer = _Layer(weight.value, call.arguments["groups"], x, seen, added, bias, padded=padded,
                   step=weight.step)  # fmt: skip
    fields, made = _weighted(call, layer)
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
    added, left, right = map(call.tag, FACTORS[call.name])
    beta, alpha = call.arguments.get("beta", 1), call.arguments.get("alpha", 1)
    added, flipped = added if beta != 0 else None, right.from_image
    x, weight = (right, left) if flipped else (left, right)
    image = _matrices(call.arguments[FACTORS[call.name][1 + flipped]], flipped)
    if weight.value is None:  # both operands depend on the image
        extra = factor(alpha) + (factor(beta) if added else 0), int(added is not None)
        return {"kind": "matmul", "window": image.shape[-1], "extra": extra}, None
    value = _matrices(weight.value, flipped).mT  # (groups, c_out / groups, c_in / groups)
    if len(value) > 1 and value.stride(0) == 0 and added is None:  # one matrix for all rows
        value, image = value[:1], image.flatten(0, 1)[None]
    value, groups = value * alpha if alpha != 1 else value, len(value)
    value = value[0] if groups == 1 else value.flatten(0, 1)
    seen = _columns(x.channels, image, flipped)
    bias = _bias(call, added, flipped, beta)
    step = weight.step
    if step is not None and step.dim() > 1 and groups == 1:
        step = _matrices(step, flipped).mT[0]
    layer = _Layer(value, groups, x, seen, added, bias, beta, step=step if alpha == 1 else None)
    fields, made = _weighted(call, layer)
    fields |= {
        "in_shape": (image.shape[1], groups * image.shape[2]),
        "out_shape": (image.shape[1], len(value)),
        "labels": made.labels,
        "constants": made.constants,
    }
    linear = call.caller.given(0, "input") if call.caller.name == "linear" else None
    if linear is None or linear.dim() != 2:  # nobody narrows a layer there
        for side in filter(None, (made, seen)):
            call.labels.fix(side.labels)
    return fields, seen and [_result(made, groups, len(call.shapes[0]), flipped)]


def _columns(channels: Channels | None, image: Tensor, flipped: bool) -> Channels | None:
    """Channels (c_in,) of the factor that is not stored, if those are its columns."""
    found = channels and channels.map(lambda part: _matrices(part, flipped))
    if found is None or found.labels.shape[1] > 1 or len(found.labels) > len(image):
        return None
    return found.map(lambda part: part.expand(len(image), 1, image.shape[-1]).flatten())


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
    found = made.map(lambda part: part.reshape(groups, 1, -1))
    found = found.map(lambda part: part.mT) if flipped else found
    return found.map(lambda part: part if rank == 3 else part[0] if rank == 2 else part[0, :, 0])


def _batchnorm(call: Call) -> tuple[Fields, Known]:
    """By stored statistics; by the image's own ones it is no part of a layer, and normalises as
    layer and group norms do."""
    tags = tuple(map(call.tag, ("weight", "bias", "running_mean", "running_var")))
    training = call.arguments.get("training", call.name == "_batch_norm_with_update")
    if training or None in tags[2:]:
        used = (tag for tag in tags[:2] if tag is not None)  # not the stored statistics
        return {"kind": "norm", "stores": tuple(t for tag in used for t in tag.stores)}, None
    channels, state = call.tags[0].channels, tuple(map(_value, tags))
    seen = channels and channels.vectors(tuple(call.inputs[0].shape))
    given = [tag for tag in tags if tag is not None]
    if any(tag.value is None for tag in given):
        # scale and shift come from the image, so that whatever else is stored stays apart
        stored = [tag for tag in given if tag.value is not None]
        fields = {"layer": ""}
        call.labels.pin(*(tag.channels for tag in given))
    else:
        stored = [tag for tag in tags[:2] if tag is not None and tag.parameters]
        fields = {"layer": call.layer, "state": state}
    fields["stores"] = tuple(tag.value for tag in stored)
    if seen is None:
        return fields, None
    if not fields["layer"]:
        call.labels.fix(seen.labels)
    eps = call.arguments.get("eps", call.arguments.get("epsilon"))
    made = Channels(seen.labels, of_batchnorm(seen.constants, state, eps))
    return fields, [made.spread(call.shapes[0])] * len(call.shapes)


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
