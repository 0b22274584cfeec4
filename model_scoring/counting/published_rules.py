"""Rule set `published`: counts as the tables of Becking 2020 were counted, to compare with them.

Its simplifications are kept on purpose: every filter has the layer's average of nonzeros, all
BatchNorm scales count as merged, and a few operations of the residual families are left out.
`Structure` has all that depends on a network's family.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from model_scoring.counting import costs
from model_scoring.counting.costs import Count, Live
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.stored_once import StoredOnce, key
from model_scoring.counting.weight_formats import tree_bits
from model_scoring.tracing.operation_record import Trace

RESIDUAL = ("resnet", "micronet")
SHORTCUTS = (".shortcut.", ".downsample.")


@dataclass(frozen=True)
class Structure:
    """The data flow of a network as the tables saw it."""

    trace: Trace
    family: str
    stored: StoredOnce

    @cached_property
    def skipped(self) -> set[int]:
        """Shortcut convolutions with their BatchNorm, pooling, all residual sums but the last."""
        if self.family not in RESIDUAL:
            return set()
        records = self.trace.records
        sums = [i for i, r in enumerate(records) if r.kind == "add"]
        named = {i for i, r in enumerate(records) if any(s in r.name for s in SHORTCUTS)}
        pools = {i for i, r in enumerate(records) if r.kind in ("avgpool", "maxpool")}
        return named | pools | set(sums[:-1])

    @cached_property
    def live(self) -> dict[int, Live]:
        """What is left of each layer. In the chain of a residual network's block convolutions an
        input goes with the filter of the convolution before; elsewhere it goes if it has no
        weights, except in depthwise and linear layers."""
        result, before = {}, None
        for i, record in enumerate(self.trace.records):
            if record.weights is None:
                continue
            counts = record.weights.counts
            inputs, filters = (counts.sum(d, dtype=torch.int32).bool() for d in (1, 2))
            everything = torch.ones_like(inputs)
            if record.kind == "linear":
                inputs, filters = everything, torch.ones_like(filters)
            elif self.family in RESIDUAL and ".conv" in record.name:
                follows = before is not None and (1, before.numel()) == inputs.shape
                inputs = before.reshape(1, -1) if follows else everything
                before = filters
            elif len(counts) > 1 and inputs.shape[1] == 1:  # depthwise
                inputs = everything
            result[i] = Live.of(record.weights, inputs, filters)
        return result

    @cached_property
    def sources(self) -> list[int | None]:
        """For each record the counted layer its values last went through, itself included."""
        found: list[int | None] = []
        for i, record in enumerate(self.trace.records):
            before = [found[j] for j in record.inputs if found[j] is not None]
            is_layer = record.weights is not None and i not in self.skipped
            found.append(i if is_layer else max(before, default=None))
        return found

    def live_channels(self, i: int) -> int:
        """Of a record's result: those of the layer it comes from."""
        c, source = costs.channels(self.trace.records[i].out_shape), self.sources[i]
        filters = None if source is None else self.live[source].filters
        return c if filters is None or filters.numel() != c else int(filters.sum())

    def new_biases(self, i: int) -> int:
        """Of a layer's live filters those whose bias is not stored yet."""
        return int(
            self.stored.new(self.trace.records[i].bias, self.live[i].filters.flatten()).sum()
        )

    def second_conv(self, i: int) -> int | None:
        """In a MicroNet, the second convolution of the block whose first BatchNorm this is."""
        name = self.trace.records[i].name
        if self.family != "micronet" or not name.endswith(".bn1"):
            return None
        # thesis section 4.4: the pre-activation BatchNorm is merged into it
        conv2 = name.removesuffix("bn1") + "conv2"
        return next((j for j, r in enumerate(self.trace.records) if r.name == conv2), None)


def conv(i: int, structure: Structure, settings: Settings) -> Count:
    """2 mults an output if ternary, else v; v - 1 adds, v the average nonzeros of a filter."""
    records, live = structure.trace.records, structure.live[i]
    record = records[i]
    count = costs.stored_layer(record, live, settings, structure.stored, whole=True)
    outputs = costs.positions(record) * live.rows
    v = count.nonzeros / live.rows if live.rows else 1.0
    # a bias before a BatchNorm becomes part of the BatchNorm's
    absorbed = any(j >= 0 and records[j].folds for j in structure.trace.consumers[i])
    bias = record.bias is not None and not absorbed
    stored, ternary = structure.new_biases(i) if bias else 0, record.weights.ternary
    adds = (v - 1) * settings.add_bits / WORD
    if ternary and settings.tree_adder:
        adds = tree_bits(v - 1, settings.value_bits) / WORD
    more = record.extra  # an operand that it adds
    return replace(
        count,
        params=count.params + settings.parameters(stored),
        adds=outputs * (adds + (bias + more[1]) * settings.add_bits / WORD),
        mults=outputs * ((2 if ternary else v) + more[0]) * settings.mul_bits / WORD,
    )


def linear(i: int, structure: Structure, settings: Settings) -> Count:
    """A mult per nonzero weight, one add less per output; ternary or not."""
    record = structure.trace.records[i]
    rows, bias, more = costs.positions(record), record.bias is not None, record.extra
    count = costs.stored_layer(record, structure.live[i], settings, structure.stored, whole=True)
    stored = structure.new_biases(i) if bias else 0
    stored += costs.stored_values(record, None, structure.stored)
    adds = max(count.nonzeros - count.live_out, 0) + (bias + more[1]) * count.live_out
    mults = count.nonzeros + more[0] * count.live_out
    return replace(
        count,
        params=count.params + settings.parameters(stored),
        **settings.operations(adds * rows, mults * rows),
    )


def batchnorm(i: int, structure: Structure, settings: Settings) -> Count:
    """A bias per live channel and an add per element; the scale counts as merged. A MicroNet's
    second convolution carries two: the block's first BatchNorm counts with its inputs (parameters)
    and outputs (additions)."""
    record = structure.trace.records[i]
    if not record.folds:
        return plain(i, structure, settings)
    live, second = structure.live_channels(i), structure.second_conv(i)
    adds = costs.elements(record.out_shape, live)
    if second is not None:
        kept = structure.live[second]
        live = int(kept.inputs.sum())
        adds = costs.positions(structure.trace.records[second]) * kept.rows
    first = structure.stored.new_entries(key(*record.state), torch.ones(1, dtype=torch.bool))
    params = settings.parameters(first * live)
    return Count(params, **settings.operations(adds, 0), live_in=live, live_out=live)


def plain(i: int, structure: Structure, settings: Settings) -> Count:
    """Per live element: ReLU 1 mult, swish 3 and 1 add, sigmoid 2 and 1, pooling, products."""
    records, live = structure.trace.records, structure.live_channels(i)
    record, source = records[i], structure.sources[i]
    # in a MicroNet only those after the stem and the first convolution of a block
    late = structure.family == "micronet" and source is not None
    late = late and not records[source].name.endswith("conv1")
    if late and record.kind in ("relu", "swish", "sigmoid"):
        return Count(live_in=live, live_out=live)
    params = settings.parameters(costs.stored_values(record, None, structure.stored))
    operations = costs.elementwise(record, costs.elements(record.out_shape, live), settings)
    return Count(params, **operations, live_in=live, live_out=live)


RULES: dict[str, Callable[[int, Structure, Settings], Count]] = {
    "conv": conv,  # thesis section 4.4, counted as in table 5.3
    "linear": linear,  # challenge's formula with nonzeros
    "batchnorm": batchnorm,  # thesis section 4.4: merged into the layer before
}


def count(trace: Trace, settings: Settings, *, family: str = "other") -> list[Count]:
    """Cost of each record of a trace; `family` as in the registry."""
    structure = Structure(trace, family, StoredOnce(trace.records))
    counts = []
    for i, record in enumerate(trace.records):
        if i in structure.skipped:
            c = costs.channels(record.out_shape)
            counts.append(Count(format="not counted", live_in=c, live_out=c))
            continue
        counts.append(RULES.get(record.kind, plain)(i, structure, settings))
    return counts
