"""Two networks side by side: what became of one without its dead channels."""

import statistics
from functools import partial

import torch
from torch import nn

from model_compound_scaling.command_line.tables import aligned
from model_scoring.counting.costs import positions
from model_scoring.counting.scoring import Score, layers
from model_scoring.export.latency import interleaved


def multiply_accumulates(score: Score) -> int:
    """Of convolutions and linear layers, zeros included."""
    return sum(positions(r) * r.weights.total for r in score.records if r.weights is not None)


@torch.no_grad()
def latencies(networks: list[nn.Module], shape: tuple[int, int, int]) -> list[float]:
    """Median milliseconds of a pass of one image, on the CPU; the networks take turns."""
    image = torch.randn(1, *shape)
    calls = {str(i): partial(network, image) for i, network in enumerate(networks)}
    return [statistics.median(times) for times in interleaved(calls, limit=5.0).values()]


def comparison(before: Score, after: Score, milliseconds: list[float]) -> list[str]:
    """The table of --thin: sizes, operations and time of both networks."""
    scores = (before, after)
    outputs = [sum(r.weights.counts.shape[:2].numel() for r in layers(s)) for s in scores]
    rows: list[tuple[str, str, list[float]]] = [
        ("channels", ",.0f", outputs),
        ("parameters", ",.0f", [s.parameters for s in scores]),
        ("multiply-accumulates", ",.0f", [multiply_accumulates(s) for s in scores]),
        ("milliseconds per image", ",.2f", milliseconds),
    ]
    for rules in before.totals:
        totals = [s.totals[rules] for s in scores]
        rows.append((f"scoring parameters, {rules}", ",.1f", [t.params for t in totals]))
        rows.append((f"operations, {rules}", ",.0f", [t.ops for t in totals]))
    cells = [["", "before", "thin", "ratio"]]
    for label, text, (one, other) in rows:
        ratio = f"{other / one:.3f}" if one else "-"
        cells.append([label, f"{one:{text}}", f"{other:{text}}", ratio])
    threads = torch.get_num_threads()
    unit = f"{threads} thread" + "s" * (threads != 1)
    return [*aligned(cells), f"time: median on the CPU, batch 1, {unit}"]
