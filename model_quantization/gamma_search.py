"""Strength by goal: the gamma that gives a wanted share of zeros, number of parameters or bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import nn

LARGEST_GAMMA = 1.0  # there the extreme weight of a layer's weaker side is about to become zero


class Total(Protocol):
    """What a network costs by the published rules."""

    params: float
    ops: float
    score: float


class Sizes(NamedTuple):
    """How a network's size is measured: by stage 3, of which this one imports nothing."""

    total: "Callable[[nn.Module], Total]"
    packed: "Callable[[nn.Module], int] | None" = None  # bytes; None: nobody asks for them

    def figures(self, network: "nn.Module") -> dict[str, float]:
        """What the figures of an epoch say of the network's size."""
        total = self.total(network)
        figures = {"scoring_params": total.params, "operations": total.ops, "score": total.score}
        return figures | ({"packed_bytes": self.packed(network)} if self.packed else {})


@dataclass(frozen=True)
class Goal:
    """A wanted value of something that grows with gamma."""

    name: str
    target: float
    tolerance: float
    measure: Callable[[], float]  # of the network as it is now
    rounds: int = 16  # of bisection
    times: int = 8  # an epoch, that gamma is found: weights come back to life within it

    def due(self, step: int, steps: int) -> bool:
        """Whether gamma is to be found anew after this step of an epoch's, 0 being the last."""
        return self.times > 1 and step % -(-steps // self.times) == 0

    def reached(self) -> bool:
        """Whether the network as it is now is near enough."""
        return abs(self.measure() - self.target) <= self.tolerance


def smaller(text: str, target: float, measure: Callable[[], float], **effort: int) -> Goal:
    """The goal of a size, +-2 %; it shrinks with more gamma, hence the signs."""
    return Goal(text.format(target), -target, 0.02 * target, lambda: -measure(), **effort)


def solve_gamma(goal: Goal, apply: Callable[[float], None]) -> float:
    """The gamma in [0, LARGEST_GAMMA] whose assignment comes nearest to the goal, by bisection.
    `apply(gamma)` assigns the present latent weights anew; it was called with the result last."""
    low, high, tried = 0.0, LARGEST_GAMMA, []
    for gamma in (low, high, *[None] * goal.rounds):
        gamma = (low + high) / 2 if gamma is None else gamma
        apply(gamma)
        value = goal.measure()
        tried.append((abs(value - goal.target), gamma))
        if abs(value - goal.target) <= goal.tolerance / 20:
            break
        if value < goal.target:
            low = max(low, gamma)
        else:
            high = min(high, gamma)
    best = min(tried)[1]
    apply(best)
    return best
