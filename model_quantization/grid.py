"""The grid over what EC2T is started with: its points, and the table of what became of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_compound_scaling.command_line import tables

if TYPE_CHECKING:  # the grid is read off the flags before torch is loaded
    from model_compound_scaling.runs.history import History

Row = tuple[str, float, float, float]  # name, top-1 %, zeros %, scoring parameters


@dataclass(frozen=True)
class Point:
    """One point of the grid over initial centroids and strength of the entropy constraint."""

    name: str
    initial_scale: float = 1.0
    gamma: float = 0.0
    ttq_threshold: float | None = None


def grid_points(
    method: str, scales: list[float], gammas: list[float], thresholds: list[float], targets: dict
) -> list[Point]:
    """The points of a method ("ec2t", "nearest" or "ttq"), each of which starts from the same
    full-precision weights; `targets`: of "sparsity" and "params", None where there is none."""
    if method == "ttq":
        return [Point(f"ttq_t{t:g}", ttq_threshold=t) for t in thresholds]
    if method == "nearest":
        return [Point(f"nearest_s{s:g}", s) for s in scales]
    for goal, target in targets.items():
        if target is not None:  # gamma is found, the given ones do not matter
            return [Point(f"s{s:g}_{goal}{target:g}", s) for s in scales]
    return [Point(f"s{s:g}_g{g:g}", s, g) for s in scales for g in gammas]


def results(runs: "list[History]") -> list[Row]:
    """The best epoch of each run."""
    keys = ("val_top1", "zeros", "scoring_params")
    return [(run.folder.name, *(run.best[key] for key in keys)) for run in runs if run.epochs]


def results_table(rows: list[Row]) -> str:
    """The grid's networks with accuracy, zeros and published scoring parameters, aligned."""
    cells = [("network", "best top-1", "  zeros", "scoring params")]
    cells += [(n, f"{top1:.2f} %", f"{zeros:.2f} %", f"{p:,.0f}") for n, top1, zeros, p in rows]
    return "\n".join(tables.aligned(cells))


def results_csv(rows: list[Row]) -> str:
    """The same as CSV."""
    header = ("network", "top1_percent", "zeros_percent", "scoring_params")
    cells = ((name, f"{top1:.4f}", f"{zeros:.4f}", f"{n:g}") for name, top1, zeros, n in rows)
    return tables.to_csv(header, cells)
