"""Entropy-constrained trained ternarization (Marban et al., CVPR-W 2020).

Every ternarized layer has latent weights W in full precision, two centroids -|w_n| < 0 < w_p, and
codes in {-1, 0, +1}. The network computes with the centroids, the gradients reach W and the
centroids, and after each step the codes are chosen anew (`assignment.py`).

Layers lie in a few flat vectors, so that a step is the same few operations for any number of
layers, and nothing waits for the device. Shapes are named as in `assignment.py`.
"""

import math

import torch
from torch import Tensor, nn

from model_quantization.assignment import (
    Segments,
    assign,
    find_thresholds,
    largest_lambda,
    probabilities,
    shares,
    size_factor,
    statistics,
)

MIN_CENTROID = 0.675  # a centroid is at least this many standard deviations of its layer
GROUP = 2**21  # weights per flat vector: few operations, and still friendly to a processor's cache


class LayerGroup:
    """Some layers of a network in one flat vector, and one step of their ternarization.

    `latent` (N,) and `centroids` (2, L), magnitudes, are the parameters to optimize. `values` (N,)
    is what the network computes with: its weights are views of it. With `prune` (ECP) surviving
    weights keep their latent value, and centroids only steer the assignment.
    """

    def __init__(self, weights: list[nn.Parameter], *, prune: bool) -> None:
        self.weights, self.prune = weights, prune
        flat = torch.cat([w.detach().flatten() for w in weights])
        self.segments = Segments([w.numel() for w in weights], flat)
        self.latent, self.values = nn.Parameter(flat), flat.clone()
        for weight, view in zip(weights, self.segments.split(self.values), strict=True):
            weight.data = view.view_as(weight)
        stats = statistics(flat, self.segments)
        self.centroids = nn.Parameter(torch.stack([stats.high, -stats.low]))
        self.lam = torch.zeros_like(stats.std)
        self.guarded = torch.zeros_like(self.centroids, dtype=torch.bool)
        self.positive, self.negative = flat > 0, flat < 0  # the codes: two masks (N,)

    def set_gradients(self, *, frozen: bool) -> None:
        """Gradients of latents and centroids from those of the network's weights."""
        gradient = torch.cat([w.grad.flatten() for w in self.weights])
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
            torch.mul(positive, self.positive, out=self.values)
            self.values.sub_(negative.mul_(self.negative))

    def reassign(self, gamma: float, delta: Tensor) -> None:
        """The entropy-constrained assignment; lambda = gamma delta lambda_max."""
        stats = statistics(self.latent, self.segments)
        least = (MIN_CENTROID * stats.std).clamp_min(torch.finfo(stats.std.dtype).tiny)
        self.guarded = self.centroids <= least
        self.centroids.copy_(torch.maximum(self.centroids, least))
        nearest = assign(self.latent, self.centroids / 2, self.segments)
        chance = probabilities(shares(nearest, self.segments), self.segments.counts)
        information = -chance.log2()
        self.lam = gamma * delta * largest_lambda(self.centroids, information, stats)
        thresholds = find_thresholds(self.centroids, self.lam, information)
        self.positive, self.negative = assign(self.latent, thresholds, self.segments)

    def reassign_ttq(self, threshold: float) -> None:
        """Trained ternary quantization (Zhu et al. 2017): a side iff |W| > threshold max|W|."""
        stats = statistics(self.latent, self.segments)
        limit = threshold * torch.maximum(stats.high, -stats.low)
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


def grouped(weights: list[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """Consecutive layers of at most `limit` weights together, or one larger layer."""
    groups, room = [], 0
    for weight in weights:
        if not groups or weight.numel() > room:
            groups.append([])
            room = limit
        groups[-1].append(weight)
        room -= weight.numel()
    return groups


class Ternarizer:
    """The ternarized layers of one network: `prepare_step` after the backward pass, `finish_step`
    after the optimizer's.

    The network's weights stay ordinary parameters under their ordinary names; the optimizer gets
    `latents` and `centroids` in their place. `gamma` may change at any time. With `ttq_threshold`
    the assignment is that of trained ternary quantization, from centroids of 1.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        *,
        initial_scale: float,
        gamma: float,
        kmeans: bool = False,
        prune: bool = False,
        ttq_threshold: float | None = None,
    ) -> None:
        self.names, self.gamma, self.frozen = names, gamma, False
        self.ttq_threshold = ttq_threshold
        self.weights = [network.get_parameter(name) for name in names]
        self.groups = [LayerGroup(group, prune=prune) for group in grouped(self.weights, GROUP)]
        self.latents = [group.latent for group in self.groups]
        self.centroids = [group.centroids for group in self.groups]
        largest = max(w.numel() for w in self.weights)
        self.deltas = [size_factor(group.segments.counts, largest) for group in self.groups]
        for group in self.groups:
            if ttq_threshold is None:
                group.centroids.mul_(initial_scale)
            else:
                group.centroids.fill_(1)
            if kmeans:
                group.kmeans()
        self.finish_step()

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Gradients of latents and centroids."""
        for group in self.groups:
            group.set_gradients(frozen=self.frozen)

    @torch.no_grad()
    def finish_step(self) -> None:
        """New codes, unless frozen, and the network's new weights."""
        for group, delta in zip(self.groups, self.deltas, strict=True):
            if self.ttq_threshold is not None and not self.frozen:
                group.reassign_ttq(self.ttq_threshold)
            elif not self.frozen:
                group.reassign(self.gamma, delta)
            group.set_values()

    def set_gamma(self, gamma: float) -> None:
        """Assign the present latent weights with another strength."""
        self.gamma = gamma
        self.finish_step()

    @torch.no_grad()
    def freeze(self) -> None:
        """From now on the codes are those of the network's present weights."""
        self.frozen = True
        for group in self.groups:
            group.positive, group.negative = group.values > 0, group.values < 0
            high, low = (group.segments.reduce(group.values, how) for how in ("max", "min"))
            present = torch.stack([high, -low])
            group.centroids.copy_(torch.where(present > 0, present, group.centroids))
            group.latent.copy_(group.values)
            group.latent.grad = None
            group.lam.zero_()
            group.guarded.zero_()

    def layers(self) -> list[dict[str, Tensor]]:
        """Each layer's latents and codes (n,), and centroids w_p, w_n (2,)."""
        latents, centroids = [], []
        for group in self.groups:
            latents += group.segments.split(group.latent.detach())
            centroids += torch.stack([group.centroids[0], -group.centroids[1]], 1).detach()
        columns = (latents, self.codes(), centroids)
        return [{"latent": w, "codes": c, "centroids": m} for w, c, m in zip(*columns, strict=True)]

    def codes(self) -> list[Tensor]:
        """Each layer's codes: int8 (n,), a copy."""
        codes = []
        for group in self.groups:
            both = group.positive.to(torch.int8) - group.negative.to(torch.int8)
            codes += group.segments.split(both)
        return codes

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What cannot be derived from the network's weights, layer by layer."""
        return dict(zip(self.names, self.layers(), strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue where another ternarizer of the same network stopped."""
        rows = iter(state[name] for name in self.names)
        for group in self.groups:
            own = [next(rows) for _ in group.weights]
            group.latent.copy_(torch.cat([row["latent"] for row in own]))
            group.centroids.copy_(torch.stack([row["centroids"] for row in own], 1).abs())
            codes = torch.cat([row["codes"] for row in own]).to(group.latent.device)
            group.positive, group.negative = codes > 0, codes < 0

    def figures(self) -> list[dict[str, float | str]]:
        """Each layer's cluster shares, centroids, entropy in bits per weight, and lambda."""
        keys = ("positive", "negative", "zeros", "w_p", "w_n", "entropy", "lambda")
        rows = []
        for group in self.groups:
            share = shares((group.positive, group.negative), group.segments)
            bits = -torch.special.xlogy(share, share).sum(0) / math.log(2)
            centroids = group.centroids.detach()
            columns = (*share, centroids[0], -centroids[1], bits, group.lam, *group.guarded)
            rows += torch.stack(columns, 1).tolist()
        return [
            {
                "layer": name,
                **dict(zip(keys, row, strict=False)),
                "w_p_guarded": bool(row[-2]),
                "w_n_guarded": bool(row[-1]),
            }
            for name, row in zip(self.names, rows, strict=True)
        ]

    def zeros(self) -> float:
        """Percent of the quantized weights that are zero."""
        nonzero = sum(int((g.positive | g.negative).sum()) for g in self.groups)
        return 100 - 100 * nonzero / sum(w.numel() for w in self.weights)
