"""More than three centroids: entropy-constrained trained quantization, the general case of EC2T.

With 2h + 1 levels a layer has h centroids below zero, zero, and h above.
Each weight takes the centroid of least cost (W - w_c)^2 - lambda log2 P_c, found by comparing all.
"""

import torch
from torch import Tensor, nn

from model_quantization.ec2t.assignment import MIN_ZERO_SHARE, largest_lambda, statistics
from model_quantization.ec2t.ternary_layers import MIN_CENTROID, TernaryLayers


class MultiLevelLayers(TernaryLayers):
    """Layers with `levels` (odd) values each, 0 among them.

    `centroids` are magnitudes (2h, L): the positive side from small to large, then the negative
    one. `levels_of` (R, width) int8 are the codes, -h ... h.
    """

    def __init__(self, weights: list[nn.Parameter], *, levels: int) -> None:
        super().__init__(weights, prune=False)
        half = self.half = levels // 2
        # evenly spaced up to what will be scaled to the outermost centroids
        self.share = (torch.arange(1, half + 1, device=self.latent.device) / half).repeat(2)
        outer = self.centroids.data.repeat_interleave(half, 0)
        self.centroids = nn.Parameter(outer * self.share[:, None].to(outer.dtype))
        self.guarded = torch.zeros_like(self.centroids, dtype=torch.bool)
        self.levels_of = torch.zeros_like(self.latent, dtype=torch.int8)

    def rows(self) -> Tensor:
        """The code of each row of `centroids`: 1 ... h, -1 ... -h."""
        up = torch.arange(1, self.half + 1, dtype=torch.int8, device=self.latent.device)
        return torch.cat([up, -up])

    def table(self) -> Tensor:
        """Values by code, from -h to h: (2h + 1, L)."""
        positive, negative = self.centroids.detach().split(self.half)
        return torch.cat([-negative.flip(0), torch.zeros_like(positive[:1]), positive])

    def set_gradients(self, *, frozen: bool) -> None:
        """A centroid's gradient is its cluster's sum, with the sign of its side; a latent weight's
        is multiplied by |centroid|, by 1 in the zero cluster."""
        gradient = self.gradient()
        self.centroids.grad = torch.stack(
            [
                code.sign() * self.segments.reduce(gradient * (self.levels_of == code), "sum")
                for code in self.rows()
            ]
        )
        if not frozen:
            self.latent.grad = gradient.mul_(self.values.abs().add_(self.levels_of == 0))

    def set_values(self) -> None:
        """The network's weights: each layer's table, read at its codes."""
        codes = self.segments.split(self.levels_of)
        values = [
            table.index_select(0, code.int() + self.half)
            for table, code in zip(self.table().T, codes, strict=True)
        ]
        self.values.copy_(self.segments.join(values))

    def reassign(self, gamma: float) -> None:
        """The cheapest of all centroids; lambda = gamma delta lambda_max of the outermost ones."""
        stats = statistics(self.latent, self.segments)
        least = MIN_CENTROID * stats.std.clamp_min(torch.finfo(stats.std.dtype).tiny)
        least = least * self.share[:, None].to(least.dtype)
        self.guarded = self.centroids <= least
        self.centroids.copy_(torch.maximum(self.centroids, least))
        information = -self._chances(self._cheapest(torch.zeros_like(self.lam), None)).log2()
        outer, zero = [2 * self.half, 0], self.half  # rows of `information`: codes -h ... h
        limit = largest_lambda(
            self.centroids[[self.half - 1, -1]], information[[*outer, zero]], stats
        )
        self.lam = gamma * self.segments.delta * limit
        self.levels_of = self._cheapest(self.lam, information)
        self.positive, self.negative = self.levels_of > 0, self.levels_of < 0

    def _cheapest(self, lam: Tensor, information: Tensor | None) -> Tensor:
        """Codes (R, width) of least cost at these lambda (L,)."""
        table, codes = self.table(), []
        for i, latent in enumerate(self.segments.split(self.latent.detach())):
            cost = (latent - table[:, i, None]).square_()
            if information is not None:
                cost += lam[i] * information[:, i, None]
            codes.append(cost.argmin(0))
        return self.segments.join(codes).sub_(self.half).to(torch.int8)

    def _chances(self, codes: Tensor) -> Tensor:
        """Guarded probabilities (2h + 1, L) by code, see `assignment.probabilities`."""
        every = range(-self.half, self.half + 1)
        counts = torch.stack([self.segments.reduce(codes == code, "sum") for code in every])
        chance = counts.clamp_min(1)
        chance = chance / chance.sum(0)
        zero = chance[self.half].clamp_min(MIN_ZERO_SHARE)
        chance = chance * ((1 - zero) / (1 - chance[self.half]))
        chance[self.half] = zero
        return chance

    def kmeans(self, rounds: int = 20) -> None:
        """Centroids by Lloyd's algorithm, layer by layer, with zero fixed."""
        for _ in range(rounds):
            codes = self._cheapest(torch.zeros_like(self.lam), None)
            for row, code in enumerate(self.rows()):
                member = codes == code
                count = self.segments.reduce(member, "sum")
                mean = code.sign() * self.segments.reduce(self.latent * member, "sum") / count
                self.centroids[row] = torch.where(count > 0, mean, self.centroids[row])

    def freeze(self) -> None:
        """Take codes and centroids from the network's present weights: each side's distinct values
        in order of magnitude."""
        for i, (values, codes) in enumerate(
            zip(self.segments.split(self.values), self.segments.split(self.levels_of), strict=True)
        ):
            codes.zero_()
            for row, sign in ((0, 1), (self.half, -1)):
                present = (sign * values)[sign * values > 0].unique()
                for level, value in enumerate(present):
                    codes[values == sign * value] = sign * (level + 1)
                    self.centroids[row + level, i] = value
        self.positive, self.negative = self.levels_of > 0, self.levels_of < 0
        self.latent.grad = None
        self.lam.zero_()
        self.guarded.zero_()

    def codes(self) -> Tensor:
        """-h ... h for each weight: int8 (R, width)."""
        return self.levels_of.clone()

    def state(self) -> list[dict[str, Tensor]]:
        """Each layer's latents and codes (n,), and centroids in ascending order."""
        latents = self.segments.split(self.latent.detach())
        columns = (latents, self.segments.split(self.codes()), self.table().T)
        return [{"latent": w, "codes": c, "centroids": m} for w, c, m in zip(*columns, strict=True)]

    def load_state(self, layers: list[dict[str, Tensor]]) -> None:
        """The reverse of `state`."""
        self.latent.copy_(self.segments.join(layer["latent"] for layer in layers))
        table = torch.stack([layer["centroids"] for layer in layers], 1)
        sides = [table[self.half + 1 :], -table[: self.half].flip(0)]
        self.centroids.copy_(torch.cat(sides))
        self.levels_of.copy_(self.segments.join(layer["codes"] for layer in layers))
        self.positive, self.negative = self.levels_of > 0, self.levels_of < 0

    def figures(self) -> list[dict]:
        """As for three levels, w_p and w_n being the outermost centroids, and all of them."""
        codes = range(-self.half, self.half + 1)
        counts = torch.stack([self.segments.reduce(self.levels_of == c, "sum") for c in codes])
        share = counts / self.segments.counts
        bits = -torch.special.xlogy(share, share).sum(0) / torch.log(share.new_tensor(2.0))
        columns = zip(
            share.T.tolist(),
            self.table().T.tolist(),
            bits.tolist(),
            self.lam.tolist(),
            self.guarded[[self.half - 1, -1]].T.tolist(),
            strict=True,
        )
        return [
            {
                "positive": sum(p[self.half + 1 :]),
                "negative": sum(p[: self.half]),
                "zeros": p[self.half],
                "w_p": values[-1],
                "w_n": values[0],
                "entropy": entropy,
                "lambda": lam,
                "w_p_guarded": guards[0],
                "w_n_guarded": guards[1],
                "centroids": values,
                "shares": p,
            }
            for p, values, entropy, lam, guards in columns
        ]
