"""The grid over what EC2T is started with: its points, and the table of what became of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_compound_scaling.command_line import tables

if TYPE_CHECKING:  # the grid is read off the flags before torch is loaded
    from model_compound_scaling.runs.history import History

# name, top-1 %, zeros in % of the quantized weights, scoring parameters, zeros in % of all
# parameters: None in a run that an earlier version began
Row = tuple[str, float, float, float, float | None]
# what a run records of zeros, and what it says of them
ZEROS = {"zeros": " % of quantized weights", "zeros_all": " % of all parameters"}


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
    return [
        (run.folder.name, *(run.best[key] for key in keys), run.best.get("zeros_all"))
        for run in runs
        if run.epochs
    ]


def results_table(rows: list[Row]) -> str:
    """The grid's networks with accuracy, zeros and published scoring parameters, aligned."""
    cells = [("network", "best top-1", *(f"zeros,{of}" for of in ZEROS.values()), "scoring params")]
    for name, top1, zeros, params, zeros_all in rows:
        shares = ("-" if share is None else f"{share:.2f} %" for share in (zeros, zeros_all))
        cells.append((name, f"{top1:.2f} %", *shares, f"{params:,.0f}"))
    return "\n".join(tables.aligned(cells))


def results_csv(rows: list[Row]) -> str:
    """The same as CSV."""
    header = ("network", "top1_percent", "zeros_percent", "scoring_params", "zeros_all_percent")
    cells = (
        (name, f"{top1:.4f}", f"{zeros:.4f}", f"{n:g}", of_all and f"{of_all:.4f}")
        for name, top1, zeros, n, of_all in rows
    )
    return tables.to_csv(header, cells)
