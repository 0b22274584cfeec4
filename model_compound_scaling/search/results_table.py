"""The table of a search, as text and as CSV."""

import csv
import io
from collections.abc import Iterable

from model_compound_scaling.runs.history import History
from model_compound_scaling.search.points import Point, cost

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
