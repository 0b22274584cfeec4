"""The grid over what EC2T is started with: its points, and the table of what became of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model_compound_scaling.command_line import tables

if TYPE_CHECKING:  # the grid is read off the flags before torch is loaded
    from model_compound_scaling.runs.history import History

# what a run records of zeros, and what it says of them
ZEROS = {"zeros": " % of quantized weights", "zeros_all": " % of all parameters"}


class Row(NamedTuple):
    """A network that was made, and the figures of its best epoch."""

    name: str
    figures: dict


class Column(NamedTuple):
    """A figure in the table and in the CSV."""

    key: str
    title: str
    shown: str
    field: str
    value: str


COLUMNS = (
    Column("val_top1", "best top-1", "{:.2f} %", "top1_percent", "{:.4f}"),
    Column("zeros", "zeros," + ZEROS["zeros"], "{:.2f} %", "zeros_percent", "{:.4f}"),
    Column("scoring_params", "scoring params", "{:,.0f}", "scoring_params", "{:g}"),
    Column("zeros_all", "zeros," + ZEROS["zeros_all"], "{:.2f} %", "zeros_all_percent", "{:.4f}"),
    Column("operations", "operations", "{:,.0f}", "operations", "{:g}"),
    Column("score", "score", "{:.6f}", "score", "{:.6g}"),
    Column("act_bits", "activations", "{} bit", "activation_bits", "{}"),
    Column("packed_bytes", "packed bytes", "{:,}", "packed_bytes", "{}"),
    Column("reported", "validation top-1", "{:.2f} %", "validation_top1_percent", "{:.4f}"),
)
# what "smallest" may mean -> the figure that says it
OBJECTIVES = {"params": "scoring_params", "ops": "operations", "score": "score",
              "bytes": "packed_bytes"}  # fmt: skip


def _columns(rows: list[Row]) -> list[Column]:
    """Those that some row has a figure for."""
    return [column for column in COLUMNS if any(column.key in row.figures for row in rows)]


def _cells(figures: dict, columns: list[Column], text: str, absent: str | None) -> list[str | None]:
    """The figures as `text` ("shown" or "value") has them, `absent` where there is none."""
    formats = ((getattr(column, text), column.key) for column in columns)
    return [form.format(figures[key]) if key in figures else absent for form, key in formats]


@dataclass(frozen=True)
class Point:
    """One point of the grid over initial centroids and strength of the entropy constraint."""

    name: str
    initial_scale: float = 1.0
    gamma: float = 0.0
    ttq_threshold: float | None = None
    start: str = ""  # name of the point whose network it starts from, "" for the one given
    act_bits: int | None = None  # of quantized layers' inputs


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

    def row(run: "History") -> Row:
        reported = {"reported": run.reported["top1"]} if run.reported else {}
        return Row(run.folder.name, run.best | reported)

    return [row(run) for run in runs if run.epochs]


def results_table(rows: list[Row], chosen: int | None = None) -> str:
    """The networks with accuracy and size, aligned; the one that is chosen has a star."""
    columns = _columns(rows)
    cells = [("network", *(column.title for column in columns))]
    for i, (name, figures) in enumerate(rows):
        cells.append((name + " *" * (i == chosen), *_cells(figures, columns, "shown", "-")))
    return "\n".join(tables.aligned(cells))


def results_csv(rows: list[Row]) -> str:
    """The same as CSV."""
    columns = _columns(rows)
    header = ("network", *(column.field for column in columns))
    cells = ((name, *_cells(figures, columns, "value", None)) for name, figures in rows)
    return tables.to_csv(header, cells)
