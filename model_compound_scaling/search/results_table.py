"""The table of a search: its rows, and these as text."""

from collections.abc import Iterable

from model_compound_scaling.command_line import tables
from model_compound_scaling.runs.history import History
from model_compound_scaling.search.points import Point, cost

HEADER = ("network", "d", "w", "r", "phi", "parameters", "MACs")


def rows(
    trained: dict[Point, History], missing: Iterable[Point] = (), *, predicted: bool = False
) -> list[tuple]:
    """HEADER's values and, of each point, epochs, mean of the best five and best accuracy, and that
    on the validation images where others decided, None where it is not trained; or, `predicted`,
    the predicted cost."""
    table = []
    for point, history in {**trained, **dict.fromkeys(missing)}.items():
        outcome = (0, None, None, None)
        if predicted:
            outcome = (point.predicted_cost,)
        elif history and history.epochs:
            best, reported = history.best["val_top1"], history.reported
            shown = reported and reported["top1"]
            outcome = (history.epochs_done, history.mean_of_best, best, shown)
        table.append((point.name, *point.multipliers, point.phi, *cost(point), *outcome))
    return table


def to_text(table: list[tuple], *, predicted: bool = False) -> str:
    """The rows as aligned columns."""
    more = ("predicted cost",) if predicted else ("epochs", "mean of best 5", "best top-1")
    if held := not predicted and any(row[-1] is not None for row in table):
        more = (*more, "validation top-1")
    lines = [(*HEADER, *more)]
    for name, d, w, r, phi, params, macs, *outcome in table:
        scaled = (f"{value:g}" for value in (d, w, r, phi))
        if predicted:
            shown = [f"{outcome[0]:.2f} x"]
        else:
            epochs, *accuracies = outcome if held else outcome[:-1]
            shown = [str(epochs), *("-" if a is None else f"{a:.2f} %" for a in accuracies)]
        lines.append((name, *scaled, f"{params:,}", f"{macs / 1e6:,.1f}M", *shown))
    return "\n".join(tables.aligned(lines))
