"""How a network is trained in both stages: the learning rate over the epochs, the loss, speed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

T = TypeVar("T")

SCHEDULES: dict[str, Callable[[int, int], float]] = {  # (epoch, epochs) -> factor of the lr
    "constant": lambda epoch, epochs: 1.0,
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
    "step": lambda epoch, epochs: 0.1 ** (epoch // 30),
}
AMP = {"off": None, "bf16": "bfloat16", "fp16": "float16"}  # torch's names of the types


@dataclass(frozen=True)
class Recipe:
    """What the flags of the same names say; the defaults are plain training. schedule: a key of
    SCHEDULES. amp: a key of AMP. mixup and cutmix: parameter of the Beta distribution of the shares
    (arXiv 1710.09412 and 1905.04899), 0 for off; with both, one of them at random each step."""

    schedule: str = "constant"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    amp: str = "off"
    channels_last: bool = False
    compile: bool = False

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Share of the learning rate in an epoch (from 0) of a phase: linear while it warms up, to
        the schedule's first value in the epoch after that, then the schedule over the rest, which
        is at least one epoch."""
        warmup = min(self.warmup_epochs, epochs - 1)
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        return SCHEDULES[self.schedule](epoch - warmup, epochs - warmup)


def from_flags(kind: type[T], flags: Mapping[str, object], **more: object) -> T:
    """A dataclass of settings from the flags that have its fields' names, but for `more`."""
    named = {f.name: flags[f.name] for f in fields(kind) if f.name not in more}
    return kind(**named, **more)
