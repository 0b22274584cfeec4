"""Constant propagation by channel: which channels are the same whatever the image.

Beside every activation goes one number per channel: its value where it is the same at every
position for every input, NaN where it is not. A filter without weights gives such a channel;
BatchNorm turns its 0 into another constant, ReLU may turn that back into 0. Only a channel that is
0 when it reaches the next layer can be left out there: with zero padding any other constant still
tells the border from the inside.
"""

import math

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
        value = torch.zeros(varies.shape, dtype=weight.dtype, device="cpu")
    else:
        entry = constants.reshape(groups, 1, per_group)
        open_input = entry.isnan() | ((entry != 0) & padded)
        varies = (touched & open_input).any(-1)
        value = (grouped(weight, groups).sum(-1) * entry.nan_to_num(0.0)).sum(-1)
    value = value.flatten() if bias is None else value.flatten() + bias
    return none_if_varying(value.masked_fill(varies.flatten(), NAN))


def of_batchnorm(
    constants: Tensor | None, channels: int, state: list[Tensor | None], eps: float
) -> Tensor | None:
    """Constants after BatchNorm; `state` is weight, bias, running mean, running variance."""
    weight, bias, mean, variance = state
    if mean is None or variance is None:
        return None
    ones = torch.ones_like(mean)
    scale = (ones if weight is None else weight) / (variance + eps).sqrt()
    shift = (0 * ones if bias is None else bias) - mean * scale
    entry = torch.full_like(mean, NAN) if constants is None else constants
    return none_if_varying(torch.where(scale == 0, shift, entry * scale + shift))


def none_if_varying(constants: Tensor) -> Tensor | None:
    """The constants, or None if there is none among them."""
    return None if bool(constants.isnan().all()) else constants


def varying(live: int, shape: tuple[int, ...]) -> int:
    """Elements of an activation (N, C, ...) of which so many channels are live."""
    channels = shape[1] if len(shape) > 1 else math.prod(shape)
    return math.prod(shape) // channels * live
