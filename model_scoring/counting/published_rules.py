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
from model_scoring.counting.costs import Context, Count, Live
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.sums import NO_SUMS, Sums, factor_bits, levels, summed_bits
from model_scoring.counting.weight_formats import tree_bits
from model_scoring.tracing.operation_record import Record, Trace

RESIDUAL = ("resnet", "micronet")
SHORTCUTS = (".shortcut.", ".downsample.")


@dataclass(frozen=True)
class Structure(Context):
    """The data flow of a network as the tables saw it."""

    family: str

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
        c, source = self.trace.records[i].width, self.sources[i]
        filters = None if source is None else self.live[source].filters
        return c if filters is None or filters.numel() != c else int(filters.sum())

    def second_conv(self, i: int) -> int | None:
        """In a MicroNet, the second convolution of the block whose first BatchNorm this is."""
        name = self.trace.records[i].name
        if self.family != "micronet" or not name.endswith(".bn1"):
            return None
        # thesis section 4.4: the pre-activation BatchNorm is merged into it
        conv2 = name.removesuffix("bn1") + "conv2"
        return next((j for j, r in enumerate(self.trace.records) if r.name == conv2), None)


def _stored(i: int, record: Record, structure: Structure, *, bias: bool) -> Count:
    """A layer's weights and the biases of its live filters."""
    live = structure.live[i]
    count = costs.layer(record, live, structure, whole=True)
    new = int(structure.stored.new(record.bias, live.filters.flatten()).sum()) if bias else 0
    new += costs.own_steps(i, live, structure) * (not record.shared)
    return replace(count, params=count.params + structure.settings.parameters(new))


def conv(i: int, record: Record, structure: Structure) -> Count:
    """2 mults an output if ternary, else v; v - 1 adds, v the average nonzeros of a filter."""
    settings, ternary, users = structure.settings, record.ternary, structure.trace.consumers[i]
    # a bias before a BatchNorm becomes part of the BatchNorm's
    bias = any(j >= 0 and structure.trace.records[j].folds for j in users)
    bias = record.bias is not None and not bias
    count = _stored(i, record, structure, bias=bias)
    outputs = costs.positions(record) * count.live_out
    v = count.nonzeros / count.live_out if count.live_out else 1.0
    sums = _sums(v, record, settings)
    adds = (v - 1) * settings.add_bits / WORD if sums is None else sums.cost(settings)
    mults, more = 2 if ternary else v, record.extra  # more: for an operand that it adds
    mults *= factor_bits(record, record.weights, settings) / settings.mul_bits
    mults += bool(costs.own_steps(i, structure.live[i], structure))
    return replace(
        count,
        adds=outputs * (adds + (bias + more[1]) * settings.add_bits / WORD),
        mults=outputs * (mults + more[0]) * settings.mul_bits / WORD,
        sums=(sums or NO_SUMS).times(outputs),
    )


def _sums(v: float, record: Record, settings: Settings) -> Sums | None:
    """Of one output of v operands; a tree begins with v - 1."""
    bits = summed_bits(record, record.weights, settings)
    if bits is None:
        return None
    return Sums(v - 1, tree_bits(v - 1, *bits) / WORD, bits[0] + levels(v), bits[1])


def linear(i: int, record: Record, structure: Structure) -> Count:
    """A mult per nonzero weight, one add less per output; ternary or not."""
    bias, more, rows = record.bias is not None, record.extra, costs.positions(record)
    count, settings = _stored(i, record, structure, bias=bias), structure.settings
    others = costs.stored_values(record, None, structure.stored)
    sums = None if record.ternary else _sums(count.nonzeros / count.live_out, record, settings)
    plain = max(count.nonzeros - count.live_out, 0) if sums is None else 0
    sums = (sums or NO_SUMS).times(count.live_out)
    adds = plain + (bias + more[1]) * count.live_out
    mults = count.nonzeros * factor_bits(record, record.weights, settings) / settings.mul_bits
    mults += (more[0] + bool(costs.own_steps(i, structure.live[i], structure))) * count.live_out
    params, operations = settings.parameters(others), settings.operations(adds * rows, mults * rows)
    operations["adds"] += sums.cost(settings) * rows
    params += count.params
    return replace(count, params=params, **operations, sums=sums.times(rows))


def batchnorm(i: int, record: Record, structure: Structure) -> Count:
    """A bias per live channel and an add per element; the scale counts as merged. A MicroNet's
    second convolution carries two: the block's first BatchNorm counts with its inputs (parameters)
    and outputs (additions)."""
    if not record.folds:
        return plain(i, record, structure)
    live, second = structure.live_channels(i), structure.second_conv(i)
    adds = costs.elements(record, live)
    if second is not None:
        kept = structure.live[second]
        live = int(kept.inputs.sum())
        adds = costs.positions(structure.trace.records[second]) * kept.rows
    everything = torch.ones(record.width, dtype=torch.bool)
    new = structure.stored.new_entries("bias", record.state, everything)
    params = structure.settings.parameters(live if new == record.width else min(live, new))
    operations = structure.settings.operations(adds, 0)
    return Count(params, **operations, live_in=live, live_out=live)


def plain(i: int, record: Record, structure: Structure) -> Count:
    """Per live element: ReLU 1 mult, swish 3 and 1 add, sigmoid 2 and 1, pooling, products."""
    live, source = structure.live_channels(i), structure.sources[i]
    # in a MicroNet only those after the stem and the first convolution of a block
    late = structure.family == "micronet" and source is not None
    late = late and not structure.trace.records[source].name.endswith("conv1")
    if late and record.kind in ("relu", "swish", "sigmoid"):
        return Count(live_in=live, live_out=live)
    stored = costs.stored_values(record, None, structure.stored)
    return costs.elementwise(record, live, stored, structure.settings)


def skipped(i: int, record: Record, structure: Structure) -> Count:
    """Left out of the tables."""
    return Count(format="not counted", live_in=record.width, live_out=record.width)


RULES: dict[str, Callable[[int, Record, Structure], Count]] = {
    "conv": conv,  # thesis section 4.4, counted as in table 5.3
    "linear": linear,  # challenge's formula with nonzeros
    "batchnorm": batchnorm,  # thesis section 4.4: merged into the layer before
}


def count(trace: Trace, settings: Settings, *, family: str = "other") -> list[Count]:
    """Cost of each record of a trace; `family` as in the registry."""
    structure, counts = Structure(trace, settings, family), []
    for i, record in enumerate(trace.records):
        rule = skipped if i in structure.skipped else RULES.get(record.kind, plain)
        counts.append(costs.with_widths(rule(i, record, structure), record, settings))
    return counts
