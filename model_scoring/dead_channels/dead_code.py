"""Dead code by channel: what can leave all layers that it passes through, exactly.

A channel is needed where a layer has weights on it whose product does not fold into that layer's
bias, and where what that layer makes of it is needed itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model_scoring.tracing.operation_record import Padding, Record, Trace


class DeadChannels(NamedTuple):
    """What can leave, and in how many rounds that was found: each is the end of channels that only
    those of the round before needed."""

    gone: Tensor  # bool (labels,): dead labels of a trace
    rounds: int


def narrowable(trace: Trace) -> list[Record | Padding]:
    """What loses channels when they leave."""
    return [r for r in (*trace.records, *trace.paddings) if r.layer]


def mixing(trace: Trace) -> list[int]:
    """Records of layers that can be narrowed and add up several channels."""
    reads = enumerate(r.layer and r.reads for r in trace.records)
    return [i for i, known in reads if known and not known.depthwise]


def dead_channels(trace: Trace, *, buildable: bool = True) -> DeadChannels:
    """Find them by a fixed point: in the first round all filters count as needed, in later ones
    only those that are not dead themselves. `buildable`: only those that layers and code can do
    without, to be taken out; else all, which need neither be stored nor computed."""
    roots = trace.labels.roots(buildable=buildable)
    gone, rounds = torch.zeros(len(roots), dtype=torch.bool), 0
    if not trace.followed:
        return DeadChannels(gone, 0)
    # a depthwise filter and its input can only leave together, and would keep each other
    readers = [r for r in trace.records if r.reads and not (buildable and r.reads.depthwise)]
    made = [part.labels for part in narrowable(trace)]
    pinned = trace.labels.pinned | (trace.labels.fixed if buildable else set())
    pinned = torch.tensor(sorted(pinned), dtype=torch.int64)
    while True:
        needed = torch.zeros_like(gone)  # by root: labels that are tied live and die together
        needed[roots[pinned]] = True
        for record in readers:
            used = record.used(~gone[record.labels].reshape(len(record.weights.counts), -1))
            needed[roots[record.reads.labels[used.flatten()]]] = True
        # an empty layer cannot be built, and parts that the code makes equal have to stay equal
        while buildable and (missed := _missed(trace, made, ~needed[roots], before=gone)):
            for labels in missed:
                needed[roots[labels]] = True
        found = ~needed[roots]
        if torch.equal(found, gone):
            return DeadChannels(gone, rounds)
        gone, rounds = found, rounds + 1


def _missed(trace: Trace, made: list[Tensor], gone: Tensor, *, before: Tensor) -> list[Tensor]:
    """Labels that have to stay after all; those that were dead before stay dead."""

    def restored(labels: Tensor, count: int) -> Tensor:
        return labels[gone[labels] & ~before[labels]][:count]

    missed = [restored(labels, 1) for labels in made if bool(gone[labels].all())]
    for parts in trace.labels.balanced:
        kept = (~gone[parts]).sum(1)
        for part, count in zip(parts, (kept.max().clamp(min=1) - kept).tolist(), strict=True):
            missed.append(restored(part, count))
    return [labels for labels in missed if len(labels)]
