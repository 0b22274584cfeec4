"""How a network is trained: the learning rate over the epochs, the options of a step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

T = TypeVar("T")

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


AMP = {"off": None, "bf16": "bfloat16", "fp16": "float16"}  # torch's names of the types


@dataclass(frozen=True)
class Options:
    """How a step computes its loss; the defaults are the plain one. amp: a key of AMP. mixup and
    cutmix: parameter of the Beta distribution of the shares (arXiv 1710.09412 and 1905.04899), 0
    for off; with both, one of them at random each step."""

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    amp: str = "off"


def from_flags(kind: type[T], flags: Mapping[str, object], **more: object) -> T:
    """A dataclass of settings from the flags that have its fields' names, but for `more`."""
    named = {f.name: flags[f.name] for f in fields(kind) if f.name not in more}
    return kind(**named, **more)
