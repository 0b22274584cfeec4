"""How full-precision networks are trained: defaults by family, learning rates, optimizer."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """Defaults of full-precision training."""

    epochs: int
    weight_decay: float
    schedule: str


RECIPES = {"efficientnet": Recipe(90, 1e-4, "step")}
DEFAULT_RECIPE = Recipe(200, 5e-4, "cosine")
SCHEDULES: dict[str, Callable[[int, int], float]] = {  # (epoch, epochs) -> factor of the lr
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
    "step": lambda epoch, epochs: 0.1 ** (epoch // 30),
}


def lr_factor(schedule: str, *, epoch: int, epochs: int, warmup: int = 0) -> float:
    """Share of the learning rate in an epoch (from 0): linear over `warmup` epochs, up to the
    schedule's first value in the epoch after them, then the schedule over the rest."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return SCHEDULES[schedule](epoch - warmup, epochs - warmup)


def make_sgd(network: nn.Module, config: dict) -> torch.optim.SGD:
    """SGD as `config` says (lr, momentum, weight_decay); Nesterov if there is momentum."""
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        nesterov=config["momentum"] > 0,
        fused=True,
    )
    if config["momentum"]:  # the fused one leaves it uninitialised where it skips the first step
        for p in network.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict, *, keep: tuple[str, ...] = ()
) -> None:
    """The moments of a saved optimizer with this one's settings, but for those in `keep`."""
    own = [
        {key: value for key, value in group.items() if key not in ("params", *keep)}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


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
