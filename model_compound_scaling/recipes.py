"""How full-precision networks are trained: defaults by family, learning rates, optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True)
class Recipe:
    """Defaults of full-precision training."""

    epochs: int
    lr: float
    weight_decay: float
    schedule: str


RECIPES = {"efficientnet": Recipe(90, 0.1, 1e-4, "step")}
DEFAULT_RECIPE = Recipe(200, 0.1, 5e-4, "cosine")
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
    return torch.optim.SGD(
        network.parameters(),
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        nesterov=config["momentum"] > 0,
        fused=True,
    )


def make_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of a network's weights and statistics, none for decay 0."""
    if not decay:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
