"""Entropy-constrained trained ternarization (Marban et al., CVPR-W 2020), and pruning.

Every ternarized layer has latent weights W in full precision, two centroids -|w_n| < 0 < w_p, and
codes in {-1, 0, +1}. The network computes with the centroids, the gradients reach W and the
centroids, and after each step the codes are chosen anew (`assignment.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_quantization.ec2t.assignment import (
    TINY,
    assign,
    find_thresholds,
    probabilities,
    shares,
)
from model_quantization.ec2t.latent_layers import LatentLayers


class TernaryLayers(LatentLayers):
    """Layers with three values. The codes are two masks (R, width), `positive` and `negative`:
    bytes, and so cheaper in a step than what is computed from floats. With `prune` (ECP) surviving
    weights keep their latent value, and centroids only steer the assignment."""

    saved = 2  # w_p and w_n
    coded = ("positive", "negative")

    def __init__(self, weights: list[nn.Parameter], *, prune: bool = False) -> None:
        super().__init__(weights, levels=3)
        self.prune = prune
        self.set_codes(self.values)

    def set_gradients(self, *, frozen: bool) -> None:
        """With `prune`, the latents' only, with factor 1 everywhere."""
        if self.prune:
            self.latent.grad = self.gradient()
        else:
            super().set_gradients(frozen=frozen)

    def set_values(self) -> None:
        """The network's weights from codes and centroids."""
        if self.prune:
            self.values.copy_(self.latent).masked_fill_(self.at_zero(), 0)
        else:
            positive, negative = map(self.segments.spread, F.hardshrink(self.centroids, TINY))
            torch.mul(self.positive, positive, out=self.values)
            self.values.sub_(self.negative * negative)

    def choose(self, information: Tensor | None = None) -> None:
        """The cheapest of three costs, by two thresholds; the nearest centroid without costs."""
        if information is None:
            # half-way to zero
            thresholds = self.centroids / 2
        else:
            thresholds = find_thresholds(self.centroids, self.lam, information)
        self.positive, self.negative = assign(self.latent, thresholds, self.segments)

    def reassign_ttq(self, threshold: float) -> None:
        """Trained ternary quantization (Zhu et al. 2017): a side iff |W| > threshold max|W|."""
        limits = (threshold * self.segments.reduce(self.latent.abs(), "max")).clamp_min(TINY)
        limits = self.segments.spread(limits)
        self.positive, self.negative = self.latent > limits, self.latent < -limits

    def probabilities(self) -> Tensor:
        """P (3, L) of the present codes, see `assignment.probabilities`."""
        return probabilities(shares(self.members(), self.segments), self.segments.counts)

    def adopt(self) -> None:
        """Codes and centroids of the present values; a side without weights keeps its centroid."""
        self.set_codes(self.values)
        present = self.extremes()
        self.centroids.copy_(torch.where(present > 0, present, self.centroids))
        if self.prune:  # values come from the latents then; else these stay, to be looked at
            self.latent.copy_(self.values)

    def members(self) -> tuple[Tensor, Tensor]:
        """Which weights are on the positive and on the negative side."""
        return self.positive, self.negative

    def at_zero(self) -> Tensor:
        """Which weights are at zero."""
        return ~(self.positive | self.negative)

    def codes(self) -> Tensor:
        """-1, 0 or +1 for each weight: int8 (R, width)."""
        return self.positive.to(torch.int8) - self.negative.to(torch.int8)

    def set_codes(self, codes: Tensor) -> None:
        """The reverse of `codes`; only signs count."""
        self.positive, self.negative = codes > 0, codes < 0
