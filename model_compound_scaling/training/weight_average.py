"""Exponential moving average of a network."""

import torch
from torch import nn

from model_compound_scaling.networks.permanent_weights import copied


class Average:
    """The exponential moving average of a network's weights and statistics, which starts from what
    it first sees; counters are copied."""

    @torch.no_grad()
    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module, self.decay, self.started = copied(network), decay, False
        kinds = (nn.Module.parameters, nn.Module.buffers)
        pairs = [pair for of in kinds for pair in zip(of(self.module), of(network), strict=True)]
        self.real = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """average += (1 - decay) (network - average); nothing waits for the device."""
        # the first update takes the network as it is: no bias towards its initialisation
        share = 1 - self.decay if self.started else 1.0
        torch._foreach_lerp_(*map(list, zip(*self.real, strict=True)), share)
        for mine, theirs in self.counters:
            mine.copy_(theirs)
        self.started = True
