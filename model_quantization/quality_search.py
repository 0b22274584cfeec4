"""The smallest network that still has a wanted accuracy: the strength of the entropy constraint is
raised until a network misses it, then bisected between the last that reached it and that one."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from model_quantization.gamma_search import LARGEST_GAMMA
from model_quantization.grid import OBJECTIVES, Point, Row

if TYPE_CHECKING:
    from model_compound_scaling.runs.history import History

RAISE = 1.5  # beyond the given strengths, each is so many times the one before


def ladder(strengths: Collection[float]) -> list[float]:
    """The strengths to raise to, one after the other: those given, then ever larger ones."""
    steps = sorted(set(strengths))
    while steps[-1] < LARGEST_GAMMA:
        steps.append(_rounded(min(LARGEST_GAMMA, RAISE * max(steps[-1], 0.1))))
    return steps


def _rounded(gamma: float) -> float:
    """As the names of folders have it."""
    return float(f"{gamma:.4g}")


def next_strength(
    steps: list[float], reached: Collection[float], missed: Collection[float]
) -> float | None:
    """What to try after strengths that reached the accuracy and some that missed it; None when
    there is nothing between them any more."""
    low, high = max(reached, default=None), min(missed, default=None)
    if high is None:
        return next((gamma for gamma in steps if low is None or gamma > low), None)
    # none has reached it: weaker, and from the full-precision network again
    gamma = _rounded(high / 2 if low is None else (low + high) / 2)
    return None if gamma in (low, high) else gamma


def search(
    scale: float,
    strengths: Collection[float],
    *,
    accuracy: float,
    trials: int,
    run: "Callable[[Point], History]",
) -> "list[History]":
    """At most `trials` networks from first centroids at `scale`. Each starts from the strongest
    that has `accuracy` (top-1, percent), the first from the network that is quantized."""
    steps, reached, missed, histories = ladder(strengths), {}, {}, []
    while len(histories) < trials:
        gamma = next_strength(steps, reached, missed)
        if gamma is None:
            break
        name, start = f"s{scale:g}_g{gamma:g}", ""
        if reached:
            name, start = f"{name}_from_g{max(reached):g}", reached[max(reached)]
        histories.append(history := run(Point(name, scale, gamma, start=start)))
        (reached if history.best["val_top1"] >= accuracy else missed)[gamma] = name
    return histories


def smallest(rows: list[Row], objective: str, accuracy: float) -> int | None:
    """Which row has the least `objective` (a key of OBJECTIVES) of those with the accuracy, None if
    no row has it; of equals the most accurate one."""
    key = OBJECTIVES[objective]
    fit = [i for i, row in enumerate(rows) if row.figures["val_top1"] >= accuracy]
    order = [(rows[i].figures[key], -rows[i].figures["val_top1"], i) for i in fit]
    return min(order)[2] if order else None


def warm_epochs(total: int | None, epochs: int, retrain_epochs: int) -> tuple[int, int]:
    """Epochs with moving and with frozen codes of a network that starts from another: `total`
    (None: a third of what the first one has), in the same proportion."""
    whole = epochs + retrain_epochs
    total = total or max(1, round(whole / 3))
    frozen = round(total * retrain_epochs / whole)
    frozen = min(max(frozen, min(retrain_epochs, 1)), total - 1)
    return total - frozen, frozen
