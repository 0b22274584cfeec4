"""Compound scaling: the networks of the grid, the best one's larger versions, and their table.

A grid holds multipliers (d, w, r) of depth, width and image size; phi is the exponent of all three,
so that the cost grows about as (d w^2 r^2)^phi.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.errors import UserError
from model_compound_scaling.history import History
from model_compound_scaling.micronet import scaled_shape
from model_compound_scaling.registry import NetworkSpec, build, table_row

Multipliers = tuple[float, float, float]  # of depth, width and image size
BUDGET, TOLERANCE = 2.0, 0.1  # of d w^2 r^2 in a grid made by itself


@dataclass(frozen=True)
class Point:
    """One network of the search: its folder's name, how to build it, what it was scaled by."""

    name: str
    spec: NetworkSpec = field(compare=False)
    image_size: int
    multipliers: Multipliers = (1.0, 1.0, 1.0)
    phi: float = 1.0

    @property
    def predicted_cost(self) -> float:
        """Operations as a multiple of the unscaled network's, by the rule of compound scaling."""
        depth, width, resolution = self.multipliers
        return (depth * width**2 * resolution**2) ** self.phi


def auto_grid(*, resolution: bool) -> list[Multipliers]:
    """All multipliers in steps of 0.1 with |d w^2 r^2 - 2| <= 0.1, 1 <= d < 2 and w, r >= 1.

    Without `resolution` r is 1, which leaves the thesis' six pairs.
    """
    tenths, sizes = range(10, 20), range(10, 20) if resolution else [10]
    budget, tolerance = int(BUDGET * 10**5), int(TOLERANCE * 10**5)  # whole numbers: no rounding
    return [
        (d / 10, w / 10, r / 10)
        for r, w, d in product(sizes, reversed(tenths), tenths)
        if abs(d * w**2 * r**2 - budget) <= tolerance
    ]


def parse_grid(values: list[float] | str, *, resolution: bool) -> list[Multipliers]:
    """The grid that --grid names: "auto", pairs (d, w), or triples (d, w, r) with `resolution`."""
    if values == "auto":
        return auto_grid(resolution=resolution)
    count, what = (3, "depth, width and image size") if resolution else (2, "depth and width")
    if len(values) % count:
        kind = "triples" if resolution else "pairs"
        raise UserError(f"--grid takes {kind} of {what}, not {len(values)} values")
    rows = (tuple(values[i : i + count]) for i in range(0, len(values), count))
    grid = [(*row, 1.0)[:3] for row in rows]
    if len(set(grid)) < len(grid):
        raise UserError("--grid names the same network twice")
    return grid


def scaled_point(
    model: str, multipliers: Multipliers, phi: float, *, num_classes: int, image_size: int
) -> Point:
    """A MicroNet of depth d^phi and width w^phi for images of r^phi times `image_size` pixels."""
    depth, width, resolution = (m**phi for m in multipliers)
    d, w, r = multipliers
    size = f"_r{r:g}" if r != 1 else ""
    shape = scaled_shape(model, depth=depth, width=width)
    return Point(
        f"{model}_d{d:g}_w{w:g}{size}_phi{phi:g}",
        NetworkSpec(model, num_classes, shape),
        round(resolution * image_size),
        multipliers,
        phi,
    )


def single_point(
    model: str, multipliers: Multipliers, phi: float, *, num_classes: int, image_size: int
) -> Point:
    """A network that has one size, whatever it is to be scaled by."""
    return Point(model.replace(":", "-"), NetworkSpec(model, num_classes), image_size)


def possible_points(
    point: Callable[[Multipliers, float], Point], grid: list[Multipliers], phis: list[float]
) -> list[Point]:
    """All points that a search may come to; those after the grid depend on which pair is best."""
    first = [point(multipliers, 1.0) for multipliers in grid] if len(grid) > 1 else []
    later = [point(multipliers, phi) for phi in phis for multipliers in grid]
    return list(dict.fromkeys(first + later))


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


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


def cost(point: Point) -> tuple[int, int]:
    """(parameters, multiply-accumulates of convolutions and linear layers for one image), from
    shapes alone where the network allows it."""
    channels = table_row(point.spec.model).channels
    for device in ("meta", "cpu"):  # constructors that look at values need real tensors
        try:
            with torch.device(device), FlopCounterMode(display=False) as counter:
                network = build(point.spec).eval()
                network(torch.zeros(1, channels, point.image_size, point.image_size))
            return parameters(network), counter.get_total_flops() // 2
        except (UserError, NotImplementedError, RuntimeError):
            if device == "cpu":
                raise
    raise AssertionError("unreachable")


HEADER = ("network", "d", "w", "r", "phi", "parameters", "MACs")


def _row(point: Point, history: History | None, *, predicted: bool) -> tuple:
    """The table's values; accuracies None where the network is not trained."""
    row = (point.name, *point.multipliers, point.phi, *cost(point))
    if predicted:
        return (*row, point.predicted_cost)
    if history is None or not history.epochs:
        return (*row, 0, None, None)
    return (*row, history.epochs_done, history.mean_of_best, history.best["val_top1"])


def rows(
    trained: dict[Point, History], missing: Iterable[Point] = (), *, predicted: bool = False
) -> list[tuple]:
    """HEADER's values and, of each point, epochs, mean of the best five and best accuracy; or,
    `predicted`, the predicted cost."""
    points = {**trained, **dict.fromkeys(missing)}
    return [_row(point, history, predicted=predicted) for point, history in points.items()]


def to_csv(table: list[tuple]) -> str:
    """The rows of trained points as CSV, accuracies in percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*HEADER, "epochs", "mean_of_best_5", "best"))
    writer.writerows(table)
    return file.getvalue()


def to_text(table: list[tuple], *, predicted: bool = False) -> str:
    """The rows as aligned columns."""
    header = list(HEADER)
    header += ["predicted cost"] if predicted else ["epochs", "mean of best 5", "best top-1"]
    cells = [header] + [_cells(row, predicted=predicted) for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *others in cells:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)


def _cells(row: tuple, *, predicted: bool) -> list[str]:
    name, d, w, r, phi, params, macs, *rest = row
    cells = [name, f"{d:g}", f"{w:g}", f"{r:g}", f"{phi:g}", f"{params:,}", f"{macs / 1e6:,.1f}M"]
    if predicted:
        return [*cells, f"{rest[0]:.2f} x"]
    epochs, mean, best = rest
    shown = ("-" if value is None else f"{value:.2f} %" for value in (mean, best))
    return [*cells, str(epochs), *shown]
