"""Dead code by channel: what can leave all layers that it passes through, exactly.

A channel is needed where a layer has weights on it whose product does not fold into that layer's
bias, and where what that layer makes of it is needed itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model_scoring.tracing.operation_record import Padding, Record, Trace


@dataclass(frozen=True)
class DeadChannels:
    """Which labels of a trace are dead, and in how many rounds that was found: each is the end of
    channels that only those of the round before needed."""

    gone: Tensor  # bool (labels,)
    rounds: int

    def of(self, labels: Tensor) -> Tensor:
        """bool, which of these labels are dead."""
        return self.gone[labels]


@dataclass(frozen=True)
class _Reader:
    """A layer that mixes channels."""

    inputs: Tensor  # (groups, inputs) labels
    outputs: Tensor  # (groups, filters) labels
    touched: Tensor  # bool (groups, filters, inputs): weights that do not fold

    @classmethod
    def of(cls, record: Record) -> "_Reader":
        groups, _, inputs = record.weights.counts.shape
        touched = record.weights.counts > 0
        if record.reads.folds is not None:
            touched &= ~record.reads.folds.reshape(groups, 1, inputs)
        sides = record.reads.labels.reshape(groups, -1), record.labels.reshape(groups, -1)
        return cls(*sides, touched)


def narrowable(trace: Trace) -> list[Record | Padding]:
    """What loses channels when they leave, in order of execution."""
    return [r for r in (*trace.records, *trace.paddings) if r.layer]


def dead_channels(trace: Trace) -> DeadChannels:
    """Find them by a fixed point: in the first round all filters count as needed, in later ones
    only those that are not dead themselves."""
    roots = trace.labels.roots()
    gone, rounds = torch.zeros(len(roots), dtype=torch.bool), 0
    if not trace.followed:
        return DeadChannels(gone, 0)
    readers = [_Reader.of(r) for r in trace.records if r.layer and r.reads and not r.reads.own]
    pinned = torch.tensor(sorted(trace.labels.pinned), dtype=torch.int64)
    outputs = [r.outputs if isinstance(r, Padding) else r.labels for r in narrowable(trace)]
    while True:
        needed = torch.zeros(len(roots), dtype=torch.bool)
        needed[roots[pinned]] = True
        for reader in readers:
            used = (reader.touched & ~gone[reader.outputs][:, :, None]).any(1)
            needed[roots[reader.inputs[used]]] = True
        # an empty layer cannot be built, and parts that the code makes equal have to stay equal
        while missed := _missed(trace, outputs, ~needed[roots], before=gone):
            for labels in missed:
                needed[roots[labels]] = True
        found = ~needed[roots]
        if torch.equal(found, gone):
            return DeadChannels(gone, rounds)
        gone, rounds = found, rounds + 1


def _missed(trace: Trace, outputs: list[Tensor], gone: Tensor, *, before: Tensor) -> list[Tensor]:
    """Labels that have to stay after all; those that were dead before stay dead."""

    def restored(labels: Tensor, count: int) -> Tensor:
        return labels[gone[labels] & ~before[labels]][:count]

    missed = [restored(labels, 1) for labels in outputs if bool(gone[labels].all())]
    for parts in trace.labels.balanced:
        kept = (~gone[parts]).sum(1)
        for part, count in zip(parts, (kept.max().clamp(min=1) - kept).tolist(), strict=True):
            missed.append(restored(part, count))
    return [labels for labels in missed if len(labels)]
