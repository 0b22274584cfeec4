"""Entropy-constrained trained ternarization (Marban et al., CVPR-W 2020).

Every ternarized layer has latent weights W in full precision, two centroids -|w_n| < 0 < w_p, and
codes in {-1, 0, +1}. The network computes with code x centroid, the gradients reach W and the
centroids, and after each step the codes are chosen anew: the cheapest of

    cost(c) = (W - w_c)^2 - lambda log2 P_c,    c in {n, 0, p}

All layers lie in one flat vector, so that a step is the same few operations for any network:
"per layer" tensors have shape (L,), or (2, L) with the positive side first; "per weight" tensors
have shape (N,). Nothing waits for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MIN_ZERO_SHARE = 0.5  # P_0 is at least this
MIN_CENTROID = 0.675  # a centroid is at least this many standard deviations of its layer
SIZE_OFFSET = 0.05  # the smallest layers still feel this share of the largest one's constraint


@dataclass(frozen=True)
class Statistics:
    """What the assignment needs to know of each layer's latent weights; all (L,)."""

    low: Tensor
    high: Tensor
    std: Tensor


class Segments:
    """Where each layer lies in the flat vector."""

    def __init__(self, sizes: list[int], like: Tensor) -> None:
        self.sizes = sizes
        self.lengths = torch.tensor(sizes, device=like.device)
        layers = torch.arange(len(sizes), dtype=torch.int32, device=like.device)
        self.layer = torch.repeat_interleave(layers, self.lengths)
        sizes = self.lengths.to(like.dtype)
        self.delta = (sizes / sizes.max() + SIZE_OFFSET) / (1 + SIZE_OFFSET)  # (L,)

    def spread(self, per_layer: Tensor) -> Tensor:
        """(L,) -> (N,): each weight gets its layer's value."""
        return per_layer.index_select(0, self.layer)

    def reduce(self, per_weight: Tensor, how: str) -> Tensor:
        """(N,) -> (L,): "sum", "mean", "min" or "max" over each layer."""
        return torch.segment_reduce(per_weight, how, lengths=self.lengths, unsafe=True)

    def split(self, per_weight: Tensor) -> tuple[Tensor, ...]:
        """(N,) -> one view per layer."""
        return per_weight.split(self.sizes)

    def statistics(self, latent: Tensor) -> Statistics:
        """Extremes and (population) standard deviation of each layer."""
        deviation = latent - self.spread(self.reduce(latent, "mean"))
        variance = self.reduce(deviation * deviation, "mean")
        return Statistics(self.reduce(latent, "min"), self.reduce(latent, "max"), variance.sqrt())

    def count(self, codes: Tensor) -> Tensor:
        """Weights per cluster: (3, L), in the order positive, negative, zero."""
        positive = self.reduce((codes > 0).to(self.delta.dtype), "sum")
        negative = self.reduce((codes < 0).to(self.delta.dtype), "sum")
        return torch.stack([positive, negative, self.lengths - positive - negative])


def assign(latent: Tensor, thresholds: Tensor, segments: Segments) -> Tensor:
    """Codes (N,) in int8: +1 above the first threshold, -1 at or below minus the second."""
    positive = latent > segments.spread(thresholds[0])
    negative = latent <= -segments.spread(thresholds[1])
    return positive.to(torch.int8) - negative.to(torch.int8)


def probabilities(counts: Tensor) -> Tensor:
    """Shares P (3, L) of the clusters, guarded: empty ones count as one weight, P_0 is at least
    one half and the other two shrink alike, so that the three still sum to 1."""
    counts = counts.clamp_min(1)
    shares = counts / counts.sum(0)
    zero = shares[2].clamp_min(MIN_ZERO_SHARE)
    sides = shares[:2] * ((1 - zero) / shares[:2].sum(0))
    return torch.cat([sides, zero[None]])


def largest_lambda(centroids: Tensor, information: Tensor, stats: Statistics) -> Tensor:
    """lambda_max (L,): above it, the extreme weight of one side would be assigned to zero.

    Keeping a side's extreme w costs (w - w_c)^2 + lambda I_c, zeroing it w^2 + lambda I_0.
    """
    extreme = torch.stack([stats.high, -stats.low])
    gain = extreme**2 - (extreme - centroids) ** 2
    price = information[:2] - information[2]
    # a side that costs no more than zero sets no limit
    limit = torch.where(price > 0, gain / price, torch.inf)
    return limit.amin(0).clamp_min(0).nan_to_num(posinf=0.0)


def find_thresholds(centroids: Tensor, lam: Tensor, information: Tensor) -> Tensor:
    """Where keeping a weight becomes cheaper than zeroing it, as magnitudes (2, L).

    cost(c) < cost(0) solved for |W|: |w_c| / 2 + lambda (I_c - I_0) / (2 |w_c|).
    """
    return (centroids + lam * (information[:2] - information[2]) / centroids) / 2


class Ternarizer:
    """The ternarized layers of one network: `prepare_step` before the optimizer, `finish_step`
    after it.

    `latent` (N,) and `centroids` (2, L; magnitudes, positive side first) are the parameters to
    optimize. The network's own weights become views of one flat vector that holds the ternary
    values; they stay ordinary parameters under their ordinary names. With `prune` (ECP) the
    surviving weights keep their latent value instead, and centroids only steer the assignment.
    """

    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        *,
        initial_scale: float,
        gamma: float,
        kmeans: bool = False,
        prune: bool = False,
    ) -> None:
        self.names, self.gamma, self.prune, self.frozen = names, gamma, prune, False
        self.weights = [network.get_parameter(name) for name in names]
        flat = torch.cat([w.detach().flatten() for w in self.weights])
        self.segments = Segments([w.numel() for w in self.weights], flat)
        self.latent = nn.Parameter(flat)
        self.values = flat.clone()
        for weight, view in zip(self.weights, self.segments.split(self.values), strict=True):
            weight.data = view.view_as(weight)
        stats = self.segments.statistics(flat)
        start = initial_scale * torch.stack([stats.high, -stats.low])
        self.centroids = nn.Parameter(self._kmeans(start) if kmeans else start)
        self.lam = torch.zeros_like(stats.std)
        self.codes = torch.zeros(flat.shape, dtype=torch.int8, device=flat.device)
        self.finish_step()

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Gradients of latents and centroids from those of the network's weights."""
        gradient = torch.cat([w.grad.flatten() for w in self.weights])
        if self.prune:
            self.latent.grad = gradient  # factor 1 everywhere
            return
        positive, negative = self.codes > 0, self.codes < 0
        # d value / d w_p = 1 in the positive cluster, d value / d |w_n| = -1 in the negative one
        self.centroids.grad = torch.stack(
            [
                self.segments.reduce(gradient * positive, "sum"),
                self.segments.reduce(gradient * negative, "sum").neg(),
            ]
        )
        if not self.frozen:
            scale = torch.where(positive | negative, self.values.abs(), 1)
            self.latent.grad = gradient * scale

    @torch.no_grad()
    def finish_step(self) -> None:
        """New codes, unless frozen, and the network's weights from codes and centroids."""
        if not self.frozen:
            self._reassign()
        if self.prune:
            self.values.copy_(self.latent * (self.codes != 0))
        else:
            positive, negative = (self.segments.spread(c) for c in self.centroids)
            self.values.copy_(torch.where(self.codes > 0, positive, -negative) * (self.codes != 0))

    def _reassign(self) -> None:
        stats = self.segments.statistics(self.latent)
        least = (MIN_CENTROID * stats.std).clamp_min(torch.finfo(stats.std.dtype).tiny)
        self.centroids.copy_(torch.maximum(self.centroids, least))
        nearest = assign(self.latent, self.centroids / 2, self.segments)
        information = -probabilities(self.segments.count(nearest)).log2()
        limit = largest_lambda(self.centroids, information, stats)
        self.lam = self.gamma * self.segments.delta * limit
        thresholds = find_thresholds(self.centroids, self.lam, information)
        self.codes = assign(self.latent, thresholds, self.segments)

    def _kmeans(self, centroids: Tensor, rounds: int = 20) -> Tensor:
        """Lloyd's algorithm for each layer, with the third centroid fixed at zero."""
        for _ in range(rounds):
            codes = assign(self.latent, centroids / 2, self.segments)
            sides = [self.latent * (codes > 0), -self.latent * (codes < 0)]
            sums = torch.stack([self.segments.reduce(side, "sum") for side in sides])
            counts = self.segments.count(codes)[:2]
            centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        return centroids.detach()

    @torch.no_grad()
    def freeze(self) -> None:
        """From now on the codes are those of the network's present weights."""
        self.frozen = True
        self.lam.zero_()
        self.codes = self.values.sign().to(torch.int8)
        high, low = (self.segments.reduce(self.values, how) for how in ("max", "min"))
        present = torch.stack([high, -low])
        self.centroids.copy_(torch.where(present > 0, present, self.centroids))
        self.latent.copy_(self.values)
        self.latent.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """What cannot be derived from the network's weights."""
        return {"latent": self.latent.data, "centroids": self.centroids.data, "codes": self.codes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where another ternarizer of the same network stopped."""
        self.latent.data.copy_(state["latent"])
        self.centroids.data.copy_(state["centroids"])
        self.codes.copy_(state["codes"])

    def layer_figures(self) -> list[dict[str, float | str]]:
        """Each layer's cluster shares, centroids, entropy in bits and lambda."""
        counts = self.segments.count(self.codes) / self.segments.lengths
        bits = -torch.special.xlogy(counts, counts).sum(0) / torch.log(torch.tensor(2.0))
        columns = [*counts, self.centroids.data[0], -self.centroids.data[1], bits, self.lam]
        keys = ("positive", "negative", "zeros", "w_p", "w_n", "entropy", "lambda")
        rows = torch.stack([column.float().cpu() for column in columns], 1).tolist()
        return [
            {"layer": name, **dict(zip(keys, row, strict=True))}
            for name, row in zip(self.names, rows, strict=True)
        ]

    def zeros(self) -> float:
        """Percent of the quantized weights that are zero."""
        return 100 * float((self.codes == 0).double().mean())
