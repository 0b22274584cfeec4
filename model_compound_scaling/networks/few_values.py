"""Layers of few values: what quantization leaves behind, known by its weights alone. The one
definition: such a layer is not pruned, is stored as codes and, if ternary, counted as such."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_VALUES = 15
TINY = torch.finfo(torch.float32).tiny
PROBE = 1024  # weights that tell nearly every full-precision layer from a quantized one


def without_subnormals(weight: Tensor) -> Tensor:
    """Weights as they count: what is too small for a float32 of full precision is 0. Hardware may
    flush it, and no shorter type holds it. Whole numbers and masks have nothing so small."""
    weight = weight.detach()
    return F.hardshrink(weight, TINY) if weight.is_floating_point() else weight


def zero_share(tensors: Iterable[Tensor]) -> float:
    """Sparsity: of layers as their weights count, of vectors (BatchNorm's, biases) exactly."""
    return zero_share_of((tensor, None) for tensor in tensors)


def zero_share_of(masked: Iterable[tuple[Tensor, Tensor | None]]) -> float:
    """The same of those values only that a mask, bool and as large, picks; None: of all."""
    pairs = [(without_subnormals(t) if t.dim() > 1 else t, mask) for t, mask in masked]
    counted = [values if mask is None else values[mask] for values, mask in pairs]
    nonzeros = sum(int(values.count_nonzero()) for values in counted)
    return 1 - nonzeros / max(1, sum(values.numel() for values in counted))


def few_values(weight: Tensor, most: int = MOST_VALUES) -> Tensor | None:
    """The different values of a weight of any shape, ascending: at most three with 0 among them
    (ternary), or at most `most` of which each has four weights on average, beyond 15 of them four
    that are not 0: those of a pruned layer differ. None: there are more."""
    flat = weight.detach().flatten()
    if len(flat[: max(PROBE, 16 * most)].unique()) > most:
        return None
    if (ternary := ternary_values(flat)) is not None:
        return torch.tensor(sorted({*ternary, 0.0}), dtype=flat.dtype)
    values = flat.unique()
    repeated = len(flat) if len(values) <= MOST_VALUES else int(flat.count_nonzero())
    # fewer weights have few values by chance
    return values if 0 < len(values) <= min(most, repeated // 4) else None


def ternary_values(weight: Tensor) -> tuple[float, float] | None:
    """Smallest and largest nonzero value of a ternary weight: 0 and at most two others, of any
    sign. None if it is not; (0, 0) if all are zero. In linear time, without sorting."""
    flat, low, high = weight.flatten(), 0.0, 0.0
    for part in (flat[:PROBE], flat):
        values = part[part != 0]
        if len(values):
            low, high = values.aminmax()
            if not ((values == low) | (values == high)).all():
                return None
    return (float(low), float(high)) if len(values) < len(flat) else None
