"""The entropy-constrained assignment (Marban et al., CVPR-W 2020), as functions of tensors.

A weight W goes where it is cheapest: cost(c) = (W - w_c)^2 - lambda log2 P_c, c in {n, 0, p}, with
w_n < 0 < w_p. Several layers are handled at once: "per weight" tensors have shape (R, width), see
`Segments`, "per layer" ones (L,), or (2, L) and (3, L) in the order positive, negative, zero.
Centroids and thresholds are magnitudes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_quantization.ec2t.flat_layers import Segments

MIN_ZERO_SHARE = 0.5  # P_0 is at least this
# What is smaller is no number of full precision: as a weight it is 0, also where it is 0 already
# because the device flushes it. Only thresholds of at least this leave a weight of 0 where it is.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Statistics:
    """What the assignment needs to know of each layer's latent weights; all (L,)."""

    low: Tensor
    high: Tensor
    std: Tensor


def statistics(latent: Tensor, segments: Segments) -> Statistics:
    """Extremes and (population) standard deviation of each layer."""
    deviation = latent - segments.spread(segments.mean(latent))
    variance = segments.mean(deviation.square_())
    low, high = (segments.reduce(latent, how) for how in ("min", "max"))
    return Statistics(low, high, variance.sqrt())


def assign(latent: Tensor, thresholds: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Masks (R, width): above the first threshold, and at or below minus the second."""
    thresholds = thresholds.clamp_min(TINY)
    return latent > segments.spread(thresholds[0]), latent <= segments.spread(-thresholds[1])


def shares(members: Iterable[Tensor], segments: Segments) -> Tensor:
    """Fractions of the weights per cluster, (C + 1, L): of C masks, then of the rest, at zero."""
    counts = torch.stack([segments.reduce(mask, "sum") for mask in members])
    return torch.cat([counts, segments.counts[None] - counts.sum(0)]) / segments.counts


def probabilities(observed: Tensor, sizes: Tensor) -> Tensor:
    """Shares P (3, L), guarded: empty clusters count as one weight, P_0 is at least one half and
    the other two shrink alike, so that the three sum to 1."""
    counted = observed.clamp_min(1 / sizes)
    counted = counted / counted.sum(0)
    zero = counted[2].clamp_min(MIN_ZERO_SHARE)
    sides = counted[:2] * ((1 - zero) / counted[:2].sum(0))
    return torch.cat([sides, zero[None]])


def largest_lambda(centroids: Tensor, information: Tensor, stats: Statistics) -> Tensor:
    """lambda_max (L,): above it, the extreme weight of one side would be assigned to zero. Keeping
    a side's extreme w costs (w - w_c)^2 + lambda I_c, zeroing it w^2 + lambda I_0."""
    extreme = torch.stack([stats.high, -stats.low])
    gain = extreme**2 - (extreme - centroids) ** 2
    price = information[:2] - information[2]
    # a side that costs no more bits than zero sets no limit
    limit = torch.where(price > 0, gain / price, torch.inf)
    return limit.amin(0).clamp_min(0).nan_to_num(posinf=0.0)


def find_thresholds(centroids: Tensor, lam: Tensor, information: Tensor) -> Tensor:
    """Where keeping a weight becomes cheaper than zeroing it, as magnitudes (2, L): cost(c) <
    cost(0) solved for |W|, |w_c| / 2 + lambda (I_c - I_0) / (2 |w_c|)."""
    return (centroids + lam * (information[:2] - information[2]) / centroids) / 2
