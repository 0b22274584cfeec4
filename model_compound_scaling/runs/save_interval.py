"""How often a checkpoint is saved within an epoch: so many steps are lost at most by a kill."""

import math
import re
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """How often a checkpoint is due within an epoch: after so many steps, or seconds, or never."""

    steps: int = 0
    seconds: float = math.inf

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """`500steps` or `15min`. ValueError for anything else."""
        match = re.fullmatch(r"(\d+)(steps|min)", text)
        if not match or not int(match[1]):
            raise ValueError(f"{text!r} is no interval")
        number = int(match[1])
        return cls(steps=number) if match[2] == "steps" else cls(seconds=60.0 * number)


class Clock:
    """Says when a checkpoint is due, by steps or by a monotonic clock, which nobody sets back."""

    def __init__(self, interval: Interval) -> None:
        self.interval, self.steps, self.start = interval, 0, time.monotonic()

    def due(self) -> bool:
        """To be asked once a step."""
        self.steps += 1
        waited = time.monotonic() - self.start
        due = self.steps == self.interval.steps or waited >= self.interval.seconds
        if due:
            self.steps, self.start = 0, time.monotonic()
        return due
