"""Which channels are the same whatever the image: followed through the network, value by value.

A vector of one number per channel goes along with every activation: the channel's value where it
is the same at every position for every input, NaN where it is not. A filter without weights gives
such a channel; BatchNorm turns its 0 into another constant, ReLU may turn that back into 0. Only a
channel that is 0 when it reaches the next layer can be left out there: with zero padding any other
constant still tells the border from the inside.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model_scoring.tracing.layer_weights import grouped

NAN = float("nan")


def of_filters(
    weight: Tensor, counts: Tensor, bias: Tensor | None, constants: Tensor | None, *, padded: bool
) -> Tensor | None:
    """Constants of a convolution's or linear layer's outputs.

    weight (c_out, c_in / groups, ...), counts (groups, c_out / groups, c_in / groups) of nonzero
    weights, constants (c_in,) or None -> (c_out,) or None. An output is constant if all its nonzero
    weights meet constant inputs, and zeros only where the border is padded with zeros.
    """
    groups, _, per_group = counts.shape
    touched = counts > 0
    if constants is None:
        varies = touched.any(-1)
        if bool(varies.all()):
            return None
        value = torch.zeros(varies.shape, device="cpu")
    else:
        entry = constants.reshape(groups, 1, per_group)
        open_input = entry.isnan() | ((entry != 0) & padded)
        varies = (touched & open_input).any(-1)
        value = (grouped(weight, groups).sum(-1) * entry.nan_to_num(0.0)).sum(-1)
    value = value.flatten() if bias is None else value.flatten() + bias
    return _or_none(value.masked_fill(varies.flatten(), NAN))


def of_batchnorm(
    constants: Tensor | None, channels: int, state: list[Tensor | None], eps: float
) -> Tensor | None:
    """Constants after BatchNorm; `state` is weight, bias, running mean, running variance."""
    weight, bias, mean, variance = state
    if mean is None or variance is None:
        return None
    ones = torch.ones(channels, device="cpu")
    scale = (ones if weight is None else weight) / (variance + eps).sqrt()
    shift = (0 * ones if bias is None else bias) - mean * scale
    entry = torch.full((channels,), NAN, device="cpu") if constants is None else constants
    return _or_none(torch.where(scale == 0, shift, entry * scale + shift))


def marked(shape: torch.Size, constants: Tensor | None) -> Tensor:
    """An activation of that shape: its constants, NaN elsewhere."""
    if constants is None:
        return torch.full(shape, NAN, device="cpu")
    spread = [1, -1] + [1] * (len(shape) - 2)
    return constants.reshape(spread).expand(shape).clone()


def of_marked(values: Tensor) -> Tensor | None:
    """Constants (C,) of a marked activation (N, C, ...)."""
    if values.dim() < 2 or not values.is_floating_point() or values.numel() == 0:
        return None
    rows = values.transpose(0, 1).flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    return _or_none(torch.where(low == high, low, NAN))


def changes_channels(name: str, pads: object) -> bool:
    """Whether an operation makes constant channels out of none: padding the channel dimension."""
    return name == "constant_pad_nd" and isinstance(pads, list | tuple) and len(pads) > 4


def through(operation: Callable[[], object]) -> list[Tensor | None]:
    """Constants of each output of an operation applied to marked values; none if it cannot be."""
    try:
        outputs = operation()
    except (RuntimeError, IndexError):  # e.g. a view that only the original strides allow
        return [None]
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [of_marked(o) if isinstance(o, Tensor) else None for o in outputs]


def _or_none(constants: Tensor) -> Tensor | None:
    return None if bool(constants.isnan().all()) else constants


def varying(constants: Tensor | None, shape: tuple[int, ...]) -> int:
    """Number of elements of an activation (N, C, ...) that depend on the image."""
    total = math.prod(shape)
    if constants is None:
        return total
    return total // len(constants) * int(constants.isnan().sum())
