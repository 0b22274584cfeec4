"""What the rules need to know of a layer's weights: where they are not zero, and if ternary."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_compound_scaling.networks.few_values import ternary_values, without_subnormals


@dataclass(frozen=True)
class Weights:
    """Counts (groups, o, i) per filter and input channel; o, i are those within a group. `high`
    counts the larger of a ternary layer's two values."""

    counts: Tensor  # nonzero weights
    high: Tensor | None  # None: not ternary
    kernel: int  # weights per filter and input channel
    same_magnitude: bool = False  # ternary with w_n = -w_p
    bits: int | None = None  # of whole numbers times steps, as quantizers leave them; None: others
    steps: int = 0  # of all filters together

    @property
    def ternary(self) -> bool:
        """Whether it has at most two values beside 0."""
        return self.high is not None

    @property
    def coded(self) -> bool:
        """Whether codes of few bits are stored for them, which no other scale can be part of."""
        return self.ternary or self.bits is not None

    @property
    def filters(self) -> int:
        """Their number, in all groups."""
        return self.counts.shape[:2].numel()

    def used(self, filters: Tensor) -> Tensor:
        """bool (groups, i): inputs with weights in any of these filters, (groups, o)."""
        return (self.counts * filters[:, :, None]).sum(1, dtype=torch.int32).bool()

    @property
    def total(self) -> int:
        """Number of weights."""
        return self.counts.numel() * self.kernel


def grouped(weight: Tensor, groups: int) -> Tensor:
    """(c_out, c_in / groups, ...) -> (groups, c_out / groups, c_in / groups, kernel)."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def examine(weight: Tensor, groups: int) -> Weights:
    """Count a convolution's (c_out, c_in / groups, ...) or linear layer's (out, in) weights."""
    weight = without_subnormals(weight)
    parts = grouped(weight, groups)
    weights = Weights(counts=_count(parts != 0), high=None, kernel=parts.shape[-1])
    return with_values(weights, parts, ternary_values(weight))


def with_values(weights: Weights, parts: Tensor, values: tuple[float, float] | None) -> Weights:
    """Weights, `grouped` in parts, that have these two values beside 0. None: they have others."""
    if values is None:
        return weights
    high = _count(parts == values[1]) * (values[1] != 0)
    return replace(weights, high=high, same_magnitude=values[0] == -values[1])


def code_bits(codes: float) -> int | None:
    """Bits that whole numbers take, from 0 to `codes`, or as many of any sign: with an offset.
    None: they have no bounds."""
    return max(1, round(codes).bit_length()) if math.isfinite(codes) else None


def integers(weight: Tensor, step: Tensor | None) -> tuple[int | None, int]:
    """Bits of the whole numbers that weights (c_out, ...) are, times a step that broadcasts to
    them, for all filters or one each; number of steps. (None, 0): they are not."""
    if step is None or (step.dim() not in (0, weight.dim()) and step.numel() > 1):
        return None, 0
    steps = step.flatten()
    if steps.numel() > 1 and (step.shape[0] != steps.numel() or steps.numel() != len(weight)):
        return None, 0
    codes = weight / steps.reshape(-1, *[1] * (weight.dim() - 1))
    if not bool((codes - codes.round()).abs().max() < 1e-3):
        return None, 0
    low, high = codes.aminmax()
    return code_bits(float(high.clamp(min=0) - low.clamp(max=0))), steps.numel()


def _count(mask: Tensor) -> Tensor:
    """Number of True along the last dimension. float32 products are exact here, and fast."""
    if mask.shape[-1] == 1:
        return mask.squeeze(-1).int()
    return mask.float().matmul(torch.ones(mask.shape[-1], device=mask.device)).int()
