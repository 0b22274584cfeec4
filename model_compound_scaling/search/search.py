"""Compound scaling in two steps (Tan and Le 2019, arXiv 1905.11946): a grid search over multipliers
(d, w, r) of depth, width and image size at phi = 1, and then the best of them for larger phi, the
exponent of all three; the cost grows about as (d w^2 r^2)^phi."""

from collections.abc import Callable
from dataclasses import dataclass, field

from model_compound_scaling.runs.history import History
from model_compound_scaling.search.points import Multipliers, Point


@dataclass(eq=False)
class Search:
    """Trains a grid, then larger versions of its best network. `train` makes a Point's History, or
    gives None where another machine is to train it and has not yet. `target` is the accuracy in
    percent at which the search ends."""

    train: Callable[[Point], History | None]
    point: Callable[[Multipliers, float], Point]
    target: float | None = None
    trained: dict[Point, History] = field(default_factory=dict)
    missing: list[Point] = field(default_factory=list)

    def run(self, grid: list[Multipliers], phis: list[float]) -> Point | None:
        """Walk through all points; returns the first that reaches the target, if there is one."""
        best = grid[0]
        if len(grid) > 1:
            points = [self.point(multipliers, 1.0) for multipliers in grid]
            for point in points:
                self._visit(point)
            if self.missing:  # nobody can know yet which is the best
                return None
            # a mean over epochs: the luckiest epoch would rank points that are nearly equal
            winner = max(points, key=lambda point: self.trained[point].mean_of_best)
            if self._reached(winner):
                return winner
            best = winner.multipliers
        # toward a target the cheapest first; else in the order that was asked for
        for phi in sorted(phis) if self.target else phis:
            point = self.point(best, phi)
            self._visit(point)
            if self._reached(point):
                return point
        return None

    def _visit(self, point: Point) -> None:
        """Train a point, unless it has been; phi 1 of the best pair is in the grid already."""
        if history := self.trained.get(point) or self.train(point):
            self.trained[point] = history
        else:
            self.missing.append(point)

    def _reached(self, point: Point) -> bool:
        history = self.trained.get(point)
        return bool(self.target and history and history.best["val_top1"] >= self.target)
