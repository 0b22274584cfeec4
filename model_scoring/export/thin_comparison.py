"""Two networks side by side: what became of one without its dead channels."""

import random
import statistics
import time

import torch
from torch import nn

from model_compound_scaling.command_line.tables import aligned
from model_scoring.counting.costs import positions
from model_scoring.counting.scoring import Score, layers

RUNS, SECONDS = 301, 5.0  # timed passes of each network, and when to be content with fewer


def multiply_accumulates(score: Score) -> int:
    """Of convolutions and linear layers, zeros included."""
    return sum(positions(r) * r.weights.total for r in score.records if r.weights is not None)


@torch.no_grad()
def latencies(networks: list[nn.Module], shape: tuple[int, int, int]) -> list[float]:
    """Median milliseconds of a pass of one image, on the CPU.

    The networks take turns in random order: whatever else the machine does, however regularly,
    slows them alike.
    """
    image, order = torch.randn(1, *shape), random.Random(0)
    times: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network(image)
    start = time.perf_counter()
    while len(times[0]) < RUNS and time.perf_counter() - start < SECONDS:
        for i in order.sample(range(len(networks)), len(networks)):
            begin = time.perf_counter()
            networks[i](image)
            times[i].append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(t) for t in times]


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
