"""SGD for full-precision networks, and optimizers that continue others."""

import torch
from torch import nn


def make_sgd(
    network: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """Fused SGD for all parameters; Nesterov if there is momentum."""
    settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": momentum > 0}
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, fused=True, **settings)
    if momentum:  # the fused one leaves it uninitialised where it skips the first step
        for p in network.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict, *, keep: tuple[str, ...] = ()
) -> None:
    """The moments of a saved optimizer with this one's settings, but for those in `keep`."""
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update({k: v for k, v in settings.items() if k not in ("params", *keep)})
