"""Figures 5.1 and 7.1 of Becking 2020: ternary and deleted weights, deleted channels by layer."""

import io
import math

from model_scoring.counting.scoring import Score

COLOURS = {
    "ternary weights": "#4477aa",
    "deleted weights": "#ccbb44",
    "deleted channels": "#cc3377",
}


def shares(score: Score, rules: str) -> dict[str, list[float]]:
    """Percent per layer: of its weights the ternary and the deleted ones (what is left of a layer
    in full precision is neither), of its inputs and outputs together the deleted channels."""
    found: dict[str, list[float]] = {name: [] for name in COLOURS}
    for record, count in zip(score.records, score.counts[rules], strict=True):
        if record.weights is None:
            continue
        groups, filters, inputs = record.weights.counts.shape
        sides, live = groups * (filters + inputs), count.live_in + count.live_out
        total, nonzeros = record.weights.total, int(record.weights.counts.sum())
        found["ternary weights"].append(100 * nonzeros / total * record.weights.ternary)
        found["deleted weights"].append(100 * (1 - nonzeros / total))
        found["deleted channels"].append(100 * (1 - live / sides) if count.weights else 0.0)
    return found


def plot(score: Score, rules: str, *, title: str) -> bytes:
    """A PNG image of `shares`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [r.name for r in score.records if r.weights is not None]
    figure = Figure(figsize=(max(6.0, 0.22 * len(names)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    found, places = shares(score, rules), range(len(names))
    stacked = {"deleted weights": {"bottom": found["ternary weights"]}}
    for name, colour in COLOURS.items():
        width = 0.35 if name == "deleted channels" else 0.8
        axes.bar(places, found[name], width=width, color=colour, **stacked.get(name, {}))
    every = math.ceil(len(names) / 120)
    axes.set_xticks(places[::every], names[::every], rotation=90, fontsize=7)
    axes.set(ylabel="%", ylim=(0, 100), title=title)
    figure.legend(list(COLOURS), loc="outside upper center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
