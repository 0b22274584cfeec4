"""Exponential moving average of a network."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's weights and statistics; counters are copied.

    It starts from what it first sees.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module, self.decay, self.started = copy.deepcopy(network), decay, False
        pairs = list(zip(self._values(self.module), self._values(network), strict=True))
        self.real = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @staticmethod
    def _values(network: nn.Module) -> list[Tensor]:
        return [*network.parameters(), *network.buffers()]

    @torch.no_grad()
    def update(self) -> None:
        """average += (1 - decay) (network - average); nothing waits for the device."""
        share = 1 - self.decay if self.started else 1.0
        torch._foreach_lerp_(*map(list, zip(*self.real, strict=True)), share)
        for mine, theirs in self.counters:
            mine.copy_(theirs)
        self.started = True
