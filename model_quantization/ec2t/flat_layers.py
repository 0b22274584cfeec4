"""Several layers laid end to end in one tensor."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

SIZE_OFFSET = 0.05  # even the smallest layer feels this share of the largest one's constraint


class Segments:
    """Where each layer lies when several are laid end to end: in R rows of equal length, their
    sizes' greatest common divisor, so that no row belongs to two layers. What is per layer reaches
    the weights by broadcasting, and sums run along rows first."""

    def __init__(self, sizes: list[int], like: Tensor) -> None:
        self.sizes = sizes
        self.width = math.gcd(*sizes)
        self.rows = torch.tensor([size // self.width for size in sizes], device=like.device)
        self.counts = (self.rows * self.width).to(like.dtype)  # weights per layer (L,)
        share = self.counts / self.counts.max()
        self.delta = (share + SIZE_OFFSET) / (1 + SIZE_OFFSET)  # (L,) part of lambda it feels
        layers = torch.arange(len(sizes), device=like.device)
        self.layer = layers.repeat_interleave(self.rows)

    def join(self, layers: Iterable[Tensor]) -> Tensor:
        """Tensors of the layers' sizes -> one copy (R, width)."""
        return torch.cat([layer.flatten() for layer in layers]).view(-1, self.width)

    def split(self, per_weight: Tensor) -> tuple[Tensor, ...]:
        """(R, width) -> one flat view per layer."""
        return per_weight.view(-1).split(self.sizes)

    def spread(self, per_layer: Tensor) -> Tensor:
        """(L,) -> (R, 1): each row gets its layer's value."""
        return per_layer.index_select(0, self.layer)[:, None]

    def reduce(self, per_weight: Tensor, how: str) -> Tensor:
        """(R, width) -> (L,): "sum", "min" or "max" over each layer."""
        along_rows = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}[how]
        per_row = along_rows(per_weight, 1).to(self.counts.dtype)
        return torch.segment_reduce(per_row, how, lengths=self.rows, unsafe=True)

    def mean(self, per_weight: Tensor) -> Tensor:
        """(R, width) -> (L,)."""
        return self.reduce(per_weight, "sum") / self.counts
