"""More than three centroids: entropy-constrained trained quantization, the general case of EC2T.

With 2h + 1 levels a layer has h centroids below zero, zero, and h above. Each weight takes the
centroid of least cost (W - w_c)^2 - lambda log2 P_c, found by comparing all.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_quantization.ec2t.assignment import MIN_ZERO_SHARE, TINY, shares
from model_quantization.ec2t.latent_layers import LatentLayers


class MultiLevelLayers(LatentLayers):
    """Layers with `levels` (odd) values each, 0 among them; int8 codes, -h ... h."""

    coded = ("levels_of",)

    def __init__(self, weights: list[nn.Parameter], *, levels: int) -> None:
        super().__init__(weights, levels=levels)
        self.saved, (up, down) = levels, self.order[:-1].split(self.half)
        self.order = torch.cat([down.flip(0), self.order[-1:], up])  # from -h to h
        self.levels_of = torch.zeros_like(self.latent, dtype=torch.int8)

    def set_values(self) -> None:
        """The network's weights: each layer's table, read at its codes."""
        tables = F.hardshrink(self.table(), TINY).T
        layers = zip(tables, self.segments.split(self.levels_of), strict=True)
        values = (table.index_select(0, code.int() + self.half) for table, code in layers)
        self.values.copy_(self.segments.join(values))

    def choose(self, information: Tensor | None = None) -> None:
        """The cheapest of all costs, zero if it is among them; the nearest centroid without."""
        table, codes = self.table(), []
        if information is not None:
            information = information.index_select(0, self.order)
        for i, latent in enumerate(self.segments.split(self.latent.detach())):
            cost = (latent - table[:, i, None]).square_()
            if information is not None:
                cost += self.lam[i] * information[:, i, None]
            at_zero = cost[self.half] <= cost.amin(0)
            codes.append(cost.argmin(0).masked_fill_(at_zero, self.half))
        self.levels_of = self.segments.join(codes).sub_(self.half).to(torch.int8)

    def probabilities(self) -> Tensor:
        """P (2h + 1, L) of the present codes, with the guards of `assignment.probabilities`."""
        counts = torch.stack([self.segments.reduce(m, "sum") for m in self.members()])
        counts = torch.cat([counts, self.segments.counts[None] - counts.sum(0)]).clamp_min(1)
        chance = counts / counts.sum(0)
        # the others shrink alike, so that the sum stays 1
        zero = chance[-1].clamp_min(MIN_ZERO_SHARE)
        return torch.cat([chance[:-1] * ((1 - zero) / (1 - chance[-1])), zero[None]])

    def adopt(self) -> None:
        """Codes and centroids of the values: each side's distinct ones in order of magnitude."""
        layers = (self.segments.split(w) for w in (self.values, self.levels_of))
        for i, (values, codes) in enumerate(zip(*layers, strict=True)):
            codes.zero_()
            for row, sign in ((0, 1), (self.half, -1)):
                present = (sign * values)[sign * values > 0].unique()
                for level, value in enumerate(present):
                    codes[values == sign * value] = sign * (level + 1)
                    self.centroids[row + level, i] = value

    def members(self) -> Iterator[Tensor]:
        """Which weights are at each centroid, one after the other: all at once take memory."""
        codes = [*range(1, self.half + 1), *range(-1, -self.half - 1, -1)]
        return (self.levels_of == code for code in codes)

    def at_zero(self) -> Tensor:
        """Which weights are at zero."""
        return self.levels_of == 0

    def codes(self) -> Tensor:
        """-h ... h for each weight: int8 (R, width), a copy."""
        return self.levels_of.clone()

    def set_codes(self, codes: Tensor) -> None:
        """The reverse of `codes`."""
        self.levels_of = codes

    def figures(self) -> list[dict]:
        """As for three levels, and all centroids and shares."""
        share = shares(self.members(), self.segments)[self.order]
        columns = (super().figures(), self.table().T.tolist(), share.T.tolist())
        return [{**f, "centroids": c, "shares": p} for f, c, p in zip(*columns, strict=True)]
