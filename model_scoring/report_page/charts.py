"""The page's pictures: what is drawn, and the same in words."""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise, takewhile
from typing import TYPE_CHECKING

from model_compound_scaling.runs.history import rank
from model_scoring.report_page.drawing import COLOURS, DENSE, INK, QUANTIZED, draw, plain
from model_scoring.report_page.run_folders import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = {1: ("full precision", DENSE), 2: ("quantized", QUANTIZED)}
PHASES = {"ternary": "moving codes", "frozen": "frozen codes"}
CURVES = 4  # more cannot be told apart
IN_WORDS = 12  # of a long list so many are said
Place = tuple[float, float]  # published scoring parameters, top-1 in percent


def labels(trials: Sequence[Trial]) -> dict[Trial, str]:
    """Short names: folders without the words that all of their stage begin with."""
    found = {}
    for stage in STAGES:
        folders = {t: t.history.folder for t in trials if t.stage == stage}
        words = {t: re.split(r"(?<=[/_])", str(folder)) for t, folder in folders.items()}
        columns = zip(*words.values(), strict=False)
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        found |= {t: plain("".join(words[t][same:]) or folders[t].name) for t in folders}
    return found


def place(trial: Trial) -> Place:
    """Where a trial that has epochs is among the others."""
    return min(max(1.0, trial.parameters), 1e15), trial.history.best["val_top1"]


def listed(items: Sequence[str]) -> str:
    """In words, a long list only its beginning."""
    more = f"; and {len(items) - IN_WORDS} more, see the table" if len(items) > IN_WORDS else ""
    return "; ".join(items[:IN_WORDS]) + more


def over_size(names: dict[Trial, str], chosen: Place | None) -> str:
    """Accuracy over size of all networks that have epochs."""
    from matplotlib.ticker import EngFormatter, LogLocator

    placed = {trial: place(trial) for trial in names if trial.history.epochs}
    sizes, top1 = zip(*sorted(placed.values()), strict=True)
    all_sizes = [*sizes, *(chosen or ())[:1]]

    def paint(axes: "Axes") -> None:
        line = {"color": INK, "alpha": 0.4, "linewidth": 1, "label": "best up to a size"}
        axes.step(sizes, [*accumulate(top1, max)], where="post", zorder=1, **line)
        for stage, (title, colour) in STAGES.items():
            if some := [p for trial, p in placed.items() if trial.stage == stage]:
                axes.plot(*zip(*some, strict=True), "o", markersize=5, color=colour, label=title)
        ring = {"markersize": 12, "markeredgewidth": 1.6, "color": INK, "fillstyle": "none"}
        if chosen:
            axes.plot(*chosen, "o", label="the chosen one", **ring)
        ends = min(all_sizes) / 1.6, max(all_sizes) * 1.6
        axes.set(xscale="log", xlim=ends, title="top-1, %", xlabel="published scoring parameters")
        wide = ends[1] / ends[0]  # at least 2.56, with two ticks or more between
        digits = range(1, 10) if wide < 5 else (1, 2, 5) if wide < 300 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=digits))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()

    words = f"{len(placed)} networks by published scoring parameters and top-1. "
    words += f"The chosen one: {chosen[0]:,.0f}, {chosen[1]:.2f} %. " if chosen else ""
    said = [f"{names[trial]}: {size:,.0f}, {top1:.2f} %" for trial, (size, top1) in placed.items()]
    return draw("over-size", words + listed(said), paint)


def curves(names: dict[Trial, str], lead: Trial | None, stage: int, what: str) -> str:
    """Loss or top-1 ("val_loss", "val_top1") over the epochs of a stage's best trials that have
    some; `lead`, if it is one of them, first."""
    trials = [trial for trial in names if trial.stage == stage and trial.history.epochs]
    trials.sort(key=lambda trial: (trial is lead, rank(trial.history.best)), reverse=True)
    said = []
    for trial in trials[:CURVES]:
        best, last = trial.history.best, trial.history.epochs[-1]
        text = f"{best[what]:.4g} in epoch {best['epoch']:.0f}, its best"
        said.append(f"{names[trial]}: {text}; {last[what]:.4g} in epoch {last['epoch']:.0f}")

    def paint(axes: "Axes") -> None:
        for i, trial in enumerate(trials[:CURVES]):
            epochs = trial.history.epochs
            x, label = [figures["epoch"] for figures in epochs], names[trial].lstrip("_")
            label = label[:21] + "…" * (len(label) > 21)  # two of them fit side by side
            line = {"linewidth": 1.2 if i else 2.2, "marker": "." if len(x) < 12 else ""}
            line |= {"color": COLOURS[i], "zorder": 3 - i / 9}
            axes.plot(x, [figures[what] for figures in epochs], label=label, **line)
            if i == 0:
                y = [figures[what.replace("val", "train")] for figures in epochs]
                line |= {"linewidth": 1.2, "linestyle": "--", "marker": ""}
                axes.plot(x, y, label="the same, training images", **line)
                _phases(axes, epochs)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch")

    return draw(f"stage{stage}-{what}", listed(said), paint)


def _phases(axes: "Axes", epochs: list[dict]) -> None:
    """Where the phases of a run begin, if it has several."""
    changes = [b for a, b in pairwise(epochs) if a["phase"] != b["phase"]]
    for figures in [epochs[0], *changes] if changes else ():
        at, name = figures["epoch"] - 0.5, PHASES.get(figures["phase"], figures["phase"])
        axes.axvline(at, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
        where = {"transform": axes.get_xaxis_transform(), "verticalalignment": "bottom"}
        axes.text(at, 1.01, f" {plain(name)[:20]}", fontsize="small", **where)


def bars(
    title: str,
    layers: list[str],
    parts: dict[str, list[float]],
    marks: dict[str, list[float]],
    colours: Sequence[str] = COLOURS,
) -> str:
    """A bar for each layer, of parts on top of each other, and marks across them."""
    from matplotlib.ticker import EngFormatter

    x, values = range(1, len(layers) + 1), {**parts, **marks}

    def paint(axes: "Axes") -> None:
        bottom, width = [0.0] * len(layers), 0.8 if len(layers) < 60 else 1.0
        for (name, heights), colour in zip(parts.items(), colours, strict=False):
            axes.bar(x, heights, width, bottom, color=colour, label=name)
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        for name, heights in marks.items():
            shown = [(i, height) for i, height in zip(x, heights, strict=True) if height]
            line = {
                "color": INK,
                "markeredgewidth": 1.6,
                "markersize": max(2, 6 - len(layers) / 30),
            }
            if shown:
                axes.plot(*zip(*shown, strict=True), "_", label=name, **line)
        axes.set(title=title, xlabel="layer, in order of execution", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))

    order = sorted(range(len(layers)), key=lambda i: -round(sum(h[i] for h in parts.values())))
    said = [f"{layers[i]}: " + ", ".join(f"{h[i]:,.0f} {name}" for name, h in values.items())
            for i in order]  # fmt: skip
    return draw(title, f"{title}, of {len(layers)} layers. {listed(said)}", paint)
