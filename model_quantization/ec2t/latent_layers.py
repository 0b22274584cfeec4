"""What ternary and multi-level layers share: latent weights, centroids, and the parts of a step.

Quantization has no useful derivative, so the gradients of the network's quantized weights are
handed to latent weights in full precision (a straight-through estimator), scaled by the centroid.

Layers share a few tensors, so that a step is the same few operations for any number of them, and
nothing waits for the device. Shapes are named as in `assignment.py`.
"""

import math

import torch
from torch import Tensor, nn

from model_quantization.ec2t.assignment import TINY, largest_lambda, shares, statistics
from model_quantization.ec2t.flat_layers import Segments

MIN_CENTROID = 0.675  # |w_c| is at least this many standard deviations of its layer


class LatentLayers:
    """The quantized layers of a network in one tensor.

    `latent` (R, width) and `centroids` (2h, L) are the parameters to optimize: for 2h + 1 levels,
    the magnitudes of the h positive centroids from small to large, then of the h negative ones.
    `values` (R, width) is what the network computes with: its weights are views of it.

    Subclasses keep the codes: `choose` sets them to the cheapest, of which `probabilities` are the
    guarded shares; `members` are their masks (R, width), one for each row of `centroids`; `adopt`
    takes codes and centroids from the values, `set_values` makes values of them.
    """

    saved: int  # how many rows of `table` a file has
    coded: tuple[str, ...]  # the attributes with the codes

    def __init__(self, weights: list[nn.Parameter], *, levels: int) -> None:
        self.weights, self.half = weights, levels // 2
        self.segments = Segments([w.numel() for w in weights], weights[0])
        self.values = self.segments.join(w.detach() for w in weights)
        self.latent = nn.Parameter(self.values.clone())
        for weight, view in zip(weights, self.segments.split(self.values), strict=True):
            weight.data = view.view_as(weight)
        device, dtype = self.values.device, self.values.dtype
        self.signs = torch.ones(2 * self.half, 1, device=device, dtype=dtype)
        self.signs[self.half :] = -1
        # evenly spaced up to the layer's extreme weight
        spacing = torch.arange(1, self.half + 1, device=device) / self.half
        self.spacing = spacing.repeat(2)[:, None].to(dtype)
        self.centroids = nn.Parameter(self.extremes().repeat_interleave(self.half, 0))
        self.centroids.data.mul_(self.spacing)
        self.guarded = torch.zeros_like(self.centroids, dtype=torch.bool)
        self.lam = torch.zeros_like(self.segments.counts)
        # of the clusters in figures and files; by default that of `centroids`, then zero
        self.order = torch.arange(levels, device=device)

    def extremes(self) -> Tensor:
        """Largest and smallest network weight of each layer, as magnitudes (2, L)."""
        high, low = (self.segments.reduce(self.values, how) for how in ("max", "min"))
        return torch.stack([high, -low])

    def gradient(self) -> Tensor:
        """Of the network's weights: (R, width); zero for a layer that the loss does not reach."""
        gradients = (torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights)
        return self.segments.join(gradients)

    def set_gradients(self, *, frozen: bool) -> None:
        """Gradients of latents and centroids from those of the network's weights."""
        gradient = self.gradient()
        # d value / d w_p = 1 on the positive side, d value / d |w_n| = -1 on the negative one
        self.centroids.grad = self.signs * self._sums(gradient)
        if not frozen:  # straight through, times |centroid|; times 1 in the zero cluster
            self.latent.grad = gradient.mul_(self.values.abs().add_(self.at_zero()))

    def _sums(self, per_weight: Tensor) -> Tensor:
        """Sum over each cluster: (2h, L)."""
        return torch.stack([self.segments.reduce(per_weight * m, "sum") for m in self.members()])

    def reassign(self, gamma: float | Tensor) -> None:
        """The entropy-constrained assignment; lambda = gamma delta lambda_max, the latter that of
        the outermost centroids."""
        stats = statistics(self.latent, self.segments)
        least = MIN_CENTROID * stats.std
        if self.half > 1:
            least = least * self.spacing
        # above 0, too, where all weights of a layer are equal: thresholds divide by it
        least = least.clamp_min(TINY)
        self.guarded = self.centroids <= least
        self.centroids.copy_(torch.maximum(self.centroids, least))
        self.choose()
        information = -self.probabilities().log2()
        # a list as index would be copied to the device, which waits for it
        outer = torch.stack([information[row] for row in (self.half - 1, -2, -1)])
        limit = largest_lambda(self.centroids[self.half - 1 :: self.half], outer, stats)
        self.lam = gamma * self.segments.delta * limit
        self.choose(information)

    def kmeans(self, rounds: int = 20) -> None:
        """Centroids by Lloyd's algorithm, layer by layer, with the one at zero fixed."""
        for _ in range(rounds):
            self.choose()
            counts = torch.stack([self.segments.reduce(m, "sum") for m in self.members()])
            means = self.signs * self._sums(self.latent) / counts.clamp_min(1)
            # an empty cluster keeps its centroid
            self.centroids.copy_(torch.where(counts > 0, means, self.centroids))

    def freeze(self) -> None:
        """Take codes and centroids from the network's present weights, which may be those of
        another epoch."""
        self.adopt()
        self.latent.grad = None
        self.lam.zero_()
        self.guarded.zero_()

    def table(self) -> Tensor:
        """All values with their signs, in the order of files: (2h + 1, L)."""
        signed = self.signs * self.centroids.detach()
        return torch.cat([signed, torch.zeros_like(signed[:1])]).index_select(0, self.order)

    def state(self) -> list[dict[str, Tensor]]:
        """Of each layer what the network's weights do not tell: latents and codes (n,), centroids
        with their signs, lambda, and which centroids are at their guards (2h,)."""
        keys = ("latent", "codes", "centroids", "lambda", "guarded")
        flat = (self.segments.split(w) for w in (self.latent.detach(), self.codes()))
        columns = (*flat, self.table()[: self.saved].T, self.lam, self.guarded.T)
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def load_state(self, layers: list[dict[str, Tensor]]) -> None:
        """The reverse of `state`."""
        for target, key in ((self.lam, "lambda"), (self.guarded, "guarded")):
            target.copy_(torch.stack([layer[key] for layer in layers], -1))
        self.latent.copy_(self.segments.join(layer["latent"] for layer in layers))
        codes = self.segments.join(layer["codes"] for layer in layers)
        self.set_codes(codes.to(self.latent.device))
        table = torch.stack([layer["centroids"] for layer in layers], 1).to(self.latent.device)
        self.centroids.copy_(self.signs * table[self.order.argsort()[:-1]])

    def figures(self) -> list[dict]:
        """Each layer's cluster shares, outermost centroids, entropy of the codes in bits per
        weight, lambda, and whether these centroids are at their guards."""
        share, outer = shares(self.members(), self.segments), [self.half - 1, -1]
        bits = -torch.special.xlogy(share, share)[self.order].sum(0) / math.log(2)
        w_p, w_n = self.centroids.detach()[outer]
        numbers = torch.stack([w_p, -w_n, bits, self.lam], 1).tolist()
        keys = ("positive", "negative", "zeros", "w_p", "w_n", "entropy", "lambda")
        keys += ("w_p_guarded", "w_n_guarded")
        rows = zip(share.T.tolist(), numbers, self.guarded[outer].T.tolist(), strict=True)
        figures = []
        for p, values, guards in rows:
            sides = (sum(p[: self.half]), sum(reversed(p[self.half : -1])))
            figures.append(dict(zip(keys, [*sides, p[-1], *values, *guards], strict=True)))
        return figures
