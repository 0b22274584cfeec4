"""Compound scaling: the networks of the grid, the best one's larger versions, and their table.

A grid holds multipliers (d, w, r) of depth, width and image size; phi is the exponent of all three,
so that the cost grows about as (d w^2 r^2)^phi.
"""

from collections.abc import Callable

from model_compound_scaling.runs.history import History
from model_compound_scaling.search.points import Multipliers, Point


class Search:
    """Trains a grid, then larger versions of its best network.

    `train` makes a Point's History, or gives None where another machine is to train it and has not
    yet. `target` is the accuracy in percent at which the search ends.
    """

    def __init__(
        self,
        train: Callable[[Point], History | None],
        point: Callable[[Multipliers, float], Point],
        *,
        target: float | None = None,
    ) -> None:
        self.train, self.point, self.target = train, point, target
        self.trained: dict[Point, History] = {}
        self.missing: list[Point] = []

    def run(self, grid: list[Multipliers], phis: list[float]) -> Point | None:
        """Walk through all points; returns the first that reaches the target, if there is one."""
        best = grid[0]
        if len(grid) > 1:
            points = [self.point(multipliers, 1.0) for multipliers in grid]
            self._train_all(points)
            if self.missing:
                return None
            winner = max(points, key=lambda point: self.trained[point].mean_of_best)
            if self._reached(winner):
                return winner
            best = winner.multipliers
        for phi in sorted(phis) if self.target else phis:
            point = self.point(best, phi)
            self._train_all([point])
            if self._reached(point):
                return point
        return None

    def _train_all(self, points: list[Point]) -> None:
        for point in points:
            history = self.trained.get(point) or self.train(point)
            if history:
                self.trained[point] = history
            else:
                self.missing.append(point)

    def _reached(self, point: Point) -> bool:
        history = self.trained.get(point)
        return bool(self.target and history and history.best["val_top1"] >= self.target)
