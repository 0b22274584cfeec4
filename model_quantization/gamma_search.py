"""Strength by goal: the gamma that gives a wanted share of zeros or number of parameters."""

from collections.abc import Callable
from dataclasses import dataclass

LARGEST_GAMMA = 1.0  # there the extreme weight of a layer's weaker side is about to become zero


@dataclass(frozen=True)
class Goal:
    """A wanted value of something that grows with gamma."""

    name: str
    target: float
    tolerance: float
    measure: Callable[[], float]  # of the network as it is now

    def reached(self) -> bool:
        """Whether the network as it is now is near enough."""
        return abs(self.measure() - self.target) <= self.tolerance


def solve_gamma(goal: Goal, apply: Callable[[float], None], *, rounds: int = 16) -> float:
    """The gamma in [0, LARGEST_GAMMA] whose assignment comes nearest to the goal, by bisection.
    `apply(gamma)` assigns the present latent weights anew; it was called with the result last."""
    low, high, tried = 0.0, LARGEST_GAMMA, []
    for gamma in (low, high, *[None] * rounds):
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
