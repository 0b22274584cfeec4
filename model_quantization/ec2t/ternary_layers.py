"""Entropy-constrained trained ternarization (Marban et al., CVPR-W 2020).

Every ternarized layer has latent weights W in full precision, two centroids -|w_n| < 0 < w_p, and
codes in {-1, 0, +1}. The network computes with the centroids, the gradients reach W and the
centroids, and after each step the codes are chosen anew (`assignment.py`).

Layers share a few tensors, so that a step is the same few operations for any number of them, and
nothing waits for the device. Shapes are named as in `assignment.py`.
"""

import math

import torch
from torch import Tensor, nn

from model_quantization.ec2t.assignment import (
    assign,
    find_thresholds,
    largest_lambda,
    probabilities,
    shares,
    statistics,
)
from model_quantization.ec2t.flat_layers import Segments

MIN_CENTROID = 0.675  # a centroid is at least this many standard deviations of its layer


class TernaryLayers:
    """The ternarized layers of a network in one tensor, and the parts of a step.

    `latent` (R, width) and `centroids` (2, L), magnitudes, are the parameters to optimize. `values`
    (R, width) is what the network computes with: its weights are views of it. With `prune` (ECP)
    surviving weights keep their latent value, and centroids only steer the assignment.
    """

    def __init__(self, weights: list[nn.Parameter], *, prune: bool) -> None:
        self.weights, self.prune = weights, prune
        self.segments = Segments([w.numel() for w in weights], weights[0])
        self.values = self.segments.join(w.detach() for w in weights)
        self.latent = nn.Parameter(self.values.clone())
        for weight, view in zip(weights, self.segments.split(self.values), strict=True):
            weight.data = view.view_as(weight)
        self.centroids = nn.Parameter(self.extremes())
        self.guarded = torch.zeros_like(self.centroids, dtype=torch.bool)
        self.lam = torch.zeros_like(self.segments.counts)
        self.positive, self.negative = self.values > 0, self.values < 0  # the codes, as masks

    def extremes(self) -> Tensor:
        """Largest and smallest network weight of each layer, as magnitudes (2, L)."""
        high, low = (self.segments.reduce(self.values, how) for how in ("max", "min"))
        return torch.stack([high, -low])

    def gradient(self) -> Tensor:
        """Of the network's weights: (R, width); zero for a layer that the loss does not reach."""
        return self.segments.join(
            torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights
        )

    def set_gradients(self, *, frozen: bool) -> None:
        """Gradients of latents and centroids from those of the network's weights."""
        gradient = self.gradient()
        if self.prune:
            self.latent.grad = gradient  # factor 1 everywhere
            return
        # d value / d w_p = 1 on the positive side, d value / d |w_n| = -1 on the negative one
        positive = self.segments.reduce(gradient * self.positive, "sum")
        negative = self.segments.reduce(gradient * self.negative, "sum")
        self.centroids.grad = torch.stack([positive, -negative])
        if not frozen:  # factor |centroid|, 1 in the zero cluster
            scale = self.values.abs().add_(~(self.positive | self.negative))
            self.latent.grad = gradient.mul_(scale)

    def set_values(self) -> None:
        """The network's weights from codes and centroids."""
        if self.prune:
            self.values.copy_(self.latent).masked_fill_(~(self.positive | self.negative), 0)
        else:
            positive, negative = (self.segments.spread(c) for c in self.centroids)
            torch.mul(self.positive, positive, out=self.values)
            self.values.sub_(self.negative * negative)

    def reassign(self, gamma: float) -> None:
        """The entropy-constrained assignment; lambda = gamma delta lambda_max."""
        stats = statistics(self.latent, self.segments)
        least = (MIN_CENTROID * stats.std).clamp_min(torch.finfo(stats.std.dtype).tiny)
        self.guarded = self.centroids <= least
        self.centroids.copy_(torch.maximum(self.centroids, least))
        nearest = assign(self.latent, self.centroids / 2, self.segments)
        chance = probabilities(shares(nearest, self.segments), self.segments.counts)
        information = -chance.log2()
        limit = largest_lambda(self.centroids, information, stats)
        self.lam = gamma * self.segments.delta * limit
        thresholds = find_thresholds(self.centroids, self.lam, information)
        self.positive, self.negative = assign(self.latent, thresholds, self.segments)

    def reassign_ttq(self, threshold: float) -> None:
        """Trained ternary quantization (Zhu et al. 2017): a side iff |W| > threshold max|W|."""
        limit = threshold * self.segments.reduce(self.latent.abs(), "max")
        self.positive, self.negative = assign(
            self.latent, torch.stack([limit, limit]), self.segments
        )

    def kmeans(self, rounds: int = 20) -> None:
        """Centroids by Lloyd's algorithm, layer by layer, with the third one fixed at zero."""
        for _ in range(rounds):
            sides = assign(self.latent, self.centroids / 2, self.segments)
            sums = [self.segments.reduce(self.latent * side, "sum") for side in sides]
            counts = torch.stack([self.segments.reduce(side, "sum") for side in sides])
            means = torch.stack([sums[0], -sums[1]]) / counts.clamp_min(1)
            self.centroids.copy_(torch.where(counts > 0, means, self.centroids))

    def freeze(self) -> None:
        """Take codes and centroids from the network's present weights."""
        self.positive, self.negative = self.values > 0, self.values < 0
        present = self.extremes()
        self.centroids.copy_(torch.where(present > 0, present, self.centroids))
        if self.prune:  # values come from the latents then; else these stay, to be looked at
            self.latent.copy_(self.values)
        self.latent.grad = None
        self.lam.zero_()
        self.guarded.zero_()

    def codes(self) -> Tensor:
        """-1, 0 or +1 for each weight: int8 (R, width)."""
        return self.positive.to(torch.int8) - self.negative.to(torch.int8)

    def state(self) -> list[dict[str, Tensor]]:
        """Each layer's latents and codes (n,), and centroids w_p, w_n."""
        signed = torch.stack([self.centroids[0], -self.centroids[1]], 1).detach()
        latents = self.segments.split(self.latent.detach())
        columns = (latents, self.segments.split(self.codes()), signed)
        return [{"latent": w, "codes": c, "centroids": m} for w, c, m in zip(*columns, strict=True)]

    def load_state(self, layers: list[dict[str, Tensor]]) -> None:
        """The reverse of `state`."""
        self.latent.copy_(self.segments.join(layer["latent"] for layer in layers))
        positive, negative = torch.stack([layer["centroids"] for layer in layers], 1)
        self.centroids.copy_(torch.stack([positive, -negative]))
        codes = self.segments.join(layer["codes"] for layer in layers).to(self.latent.device)
        self.positive, self.negative = codes > 0, codes < 0

    def figures(self) -> list[dict[str, float | bool]]:
        """Each layer's cluster shares, centroids, entropy in bits per weight, lambda and guards."""
        share = shares((self.positive, self.negative), self.segments)
        bits = -torch.special.xlogy(share, share).sum(0) / math.log(2)
        w_p, w_n = self.centroids.detach()
        columns = torch.stack([*share, w_p, -w_n, bits, self.lam], 1).tolist()
        keys = ("positive", "negative", "zeros", "w_p", "w_n", "entropy", "lambda")
        return [
            {**dict(zip(keys, row, strict=True)), "w_p_guarded": p, "w_n_guarded": n}
            for row, (p, n) in zip(columns, self.guarded.T.tolist(), strict=True)
        ]
