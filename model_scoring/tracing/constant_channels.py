"""Constant propagation by channel: which channels are the same whatever the image.

Beside every activation goes one number per channel: its value where it is the same at every
position for every input, NaN where it is not. A filter without weights gives such a channel;
BatchNorm turns its 0 into another constant, ReLU may turn that back into 0. Only a channel that is
0 when it reaches the next layer can be left out there: with zero padding any other constant still
tells the border from the inside.
"""

from torch import Tensor

from model_scoring.tracing.channel_labels import NAN
from model_scoring.tracing.layer_weights import grouped


def contribution(weight: Tensor, groups: int, values: Tensor) -> Tensor:
    """(c_out,) what inputs that have `values` (c_in,) everywhere add to each output, away from the
    border; weight (c_out, c_in / groups, ...)."""
    sums = grouped(weight, groups).sum(-1)
    return (sums * values.reshape(groups, 1, -1)).sum(-1).flatten()


def of_filters(
    weight: Tensor, counts: Tensor, bias: Tensor | None, constants: Tensor, *, padded: bool
) -> Tensor:
    """Constants (c_out,) of a convolution's or linear layer's outputs: weight (c_out, c_in /
    groups, ...), counts (groups, c_out / groups, c_in / groups) of nonzero weights, constants
    (c_in,) of its inputs. An output is constant if all its nonzero weights meet constant inputs,
    and zeros only where the border is padded with zeros."""
    open_input = constants.isnan() | ((constants != 0) & padded)
    varies = ((counts > 0) & open_input.reshape(len(counts), 1, -1)).any(-1).flatten()
    if bool(varies.all()):  # most layers: no need to add up
        return weight.new_full(weight.shape[:1], NAN)
    value = contribution(weight, len(counts), constants.nan_to_num(0.0))
    return (value if bias is None else value + bias).masked_fill(varies, NAN)


def of_batchnorm(constants: Tensor, state: tuple[Tensor | None, ...], eps: float) -> Tensor:
    """Constants (c,) after BatchNorm; `state` is weight, bias, running mean, running variance."""
    weight, bias, mean, variance = state
    scale = (variance + eps).rsqrt() if weight is None else weight / (variance + eps).sqrt()
    shift = (0 if bias is None else bias) - mean * scale
    return (constants * scale).where(scale != 0, 0.0) + shift
