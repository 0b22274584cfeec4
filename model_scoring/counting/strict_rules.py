"""Rule set `strict`: the MicroNet challenge's written rules, with nothing left out.

Every filter is counted with its own nonzeros. Channels go only where the network provably computes
the same function, and a layer that loses channels stores one bit per channel of that side.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from model_compound_scaling.networks.few_values import PROBE, ternary_values
from model_scoring.counting import costs
from model_scoring.counting.costs import Count, Live
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.stored_once import Memory, StoredOnce, identity, memory
from model_scoring.counting.weight_formats import tree_bits
from model_scoring.tracing.layer_weights import Weights, grouped, with_values
from model_scoring.tracing.operation_record import Record, Trace


@dataclass(frozen=True)
class _Context:
    trace: Trace
    settings: Settings
    gone: Tensor  # bool (labels,): dead channels
    stored: StoredOnce

    @cached_property
    def users(self) -> dict[Memory, list[int]]:
        """For each memory that holds stored values the records that use it."""
        found: dict[Memory, list[int]] = {}
        for i, record in enumerate(self.trace.records):
            tensors = (record.weight, record.bias, *record.stores)
            for place in {memory(t) for t in tensors if t is not None}:
                found.setdefault(place, []).append(i)
        return found

    def live(self, record: Record) -> Tensor:
        """bool (c,): channels of a record's result that depend on the image and are needed."""
        live = torch.ones(costs.channels(record.out_shape), dtype=torch.bool)
        if record.constants is not None:
            live &= record.constants.isnan()
        if record.labels is not None:
            live &= ~self.gone[record.labels]
        return live

    @cached_property
    def left(self) -> list[tuple[Record, Live] | None]:
        """Of each layer what is left when dead channels are gone."""
        found: list[tuple[Record, Live] | None] = []
        for record in self.trace.records:
            if record.weights is None:
                found.append(None)
                continue
            live = live_channels(record, self.live(record))
            found.append((replace(record, weights=_left(record, live)), live))
        return found

    def values(self, number: int) -> float:
        """Parameters of so many stored values."""
        return number * self.settings.value_bits / WORD


def live_channels(record: Record, live: Tensor) -> Live:
    """Filters that are `live` (c_out,), inputs that take arithmetic in any of them."""
    filters = live.reshape(record.weights.counts.shape[:2])
    return Live(record.used(filters), filters)


def _left(record: Record, live: Live) -> Weights:
    """A layer's weights, ternary or not by those alone that are `live`: their zeros may have left
    with dead channels, so that two values will do without."""
    weights, kept = record.weights, live.keep(torch.ones_like(record.weights.counts))
    if weights.ternary:
        dense = live.keep(weights.counts).sum() == weights.kernel * kept.sum()
        high, low = live.keep(weights.high).any(), live.keep(weights.counts - weights.high).any()
        # one value without 0 is no choice
        return replace(weights, high=None) if dense and not (high and low) else weights
    parts = grouped(record.weight, len(live.inputs))
    flat = (parts if bool(kept.all()) else parts[kept.bool()]).flatten()
    if len(flat[:PROBE].unique()) > 3:
        return weights
    values = ternary_values(torch.cat([flat.new_zeros(1), flat]))
    one = values is not None and values[0] == values[1] and bool(flat.all())
    return weights if values is None or one else with_values(weights, parts, values)


def _nonzero_constants(constants: Tensor | None) -> int:
    """Constant channels whose value has to be stored."""
    return 0 if constants is None else int(((constants != 0) & ~constants.isnan()).sum())


def _tree_sums(nonzeros: Tensor, width: int) -> float:
    """Bits that a tree of adders for each filter adds; trees of one size are looked at once."""
    sizes, filters = (t.tolist() for t in nonzeros.flatten().unique(return_counts=True))
    return sum(tree_bits(k, width) * many for k, many in zip(sizes, filters, strict=True))


def _plain_sums(nonzeros: Tensor) -> float:
    """k nonzeros take k - 1 additions."""
    return float((nonzeros - 1).clamp(min=0).sum())


def _ternary(record: Record, live: Live, settings: Settings) -> tuple[float, float]:
    """Additions (in 32-bit additions) and multiplications per output position, all filters.

    w_p (sum of one side) + w_n (sum of the other): two sums, a product each, and one addition of
    the products. With w_n = -w_p one sum of differences and one product do.
    """
    nonzeros = live.keep(record.weights.counts).sum(-1)
    high = live.keep(record.weights.high).sum(-1)
    sides = [nonzeros] if record.weights.same_magnitude else [high, nonzeros - high]
    mults = float(sum((side > 0).sum() for side in sides))
    full = settings.add_bits / WORD
    if not settings.tree_adder:
        return _plain_sums(nonzeros) * full, mults
    trees = sum(_tree_sums(side, settings.value_bits) for side in sides)
    joined = float((sides[0] > 0).logical_and(sides[-1] > 0).sum()) if len(sides) > 1 else 0.0
    return trees / WORD + joined * full, mults


def layer(i: int, record: Record, context: _Context) -> Count:
    """v N mults, (v - 1) N adds, with a bias N more; v nonzeros per filter, N outputs."""
    settings, at = context.settings, costs.positions(record)
    record, live = context.left[i]
    count = costs.stored_layer(record, live, settings, context.stored, whole=False)
    if record.weights.ternary:
        adds, mults = _ternary(record, live, settings)
        adds *= WORD / settings.add_bits
    else:
        nonzeros = live.keep(record.weights.counts).sum(-1)
        adds, mults = _plain_sums(nonzeros), float(nonzeros.sum())
    masks = sum(m.numel() for m in (live.inputs, live.filters) if not bool(m.all()))
    biases, key = _biases(i, record, context)
    stored = context.stored.new_entries(key, biases) + _nonzero_constants(record.constants)
    stored += costs.stored_values(record, None, context.stored)
    more, shared = record.extra, count.format == "shared"
    masks = masks / WORD if live.rows and not shared else 0.0
    adds, mults = adds + int(biases.sum()) + more[1] * live.rows, mults + more[0] * live.rows
    return replace(
        count,
        params=count.params + context.values(stored) + masks,
        **costs.scaled(adds * at, mults * at, settings),
    )


def _biases(i: int, record: Record, context: _Context) -> tuple[Tensor, Hashable]:
    """bool (c_out,): live filters that add a number of their own, and what these numbers are known
    by. Constants of inputs make one, or change it, unless a BatchNorm takes them; a BatchNorm that
    folds changes it as well."""
    biased, key = torch.zeros(record.weights.filters, dtype=torch.bool), (i,)
    if record.bias is not None:
        biased, key = record.bias != 0, (identity(record.bias),)
    folded = record.folded
    if context.trace.takes_shifts(i) is None and bool(folded.any()):
        biased, key = biased | folded, (i,)
    after = context.trace.batchnorm_after(i)
    if after is not None and folds(context.trace.records[after], context):
        key = (*key, *map(identity, context.trace.records[after].state))
    return biased & context.live(record), key


def folds(record: Record, context: _Context) -> int | None:
    """The layer whose weights a BatchNorm can be multiplied into: full precision, and used nowhere
    else than before this BatchNorm."""
    if len(record.inputs) != 1:
        return None
    records, after = context.trace.records, context.trace.batchnorm_after
    source = records[record.inputs[0]]
    if source.weights is None or after(record.inputs[0]) is None:
        return None
    norms = [after(j) for j in context.users[memory(source.weight)]]
    states = {None if j is None else tuple(map(identity, records[j].state)) for j in norms}
    alone, (left, _) = None not in states and len(states) == 1, context.left[record.inputs[0]]
    return record.inputs[0] if alone and not left.ternary else None


def batchnorm(i: int, record: Record, context: _Context) -> Count:
    """Scale and bias per channel, a mult and an add per element; the scale is free if it folds, and
    the bias where the layer has its own."""
    if not record.folds:
        return plain(i, record, context)
    live, source = context.live(record), folds(record, context)
    biased = live.clone()
    if source is not None:
        before = context.trace.records[source]
        own, _ = _biases(source, before, context)
        if None not in (record.labels, before.labels):  # channels may have changed places
            own = torch.isin(record.labels, before.labels[own])
        biased &= ~own
    scaled = torch.zeros_like(live) if source is not None else live
    key = tuple(map(identity, record.state))
    stored = sum(
        context.stored.new_entries((part, *key), mask)
        for part, mask in (("bias", biased), ("scale", scaled))
    )
    stored += _nonzero_constants(record.constants)
    at = costs.elements(record.out_shape, 1)
    operations = costs.scaled(int(biased.sum()) * at, int(scaled.sum()) * at, context.settings)
    name, count = "folded" if source is not None else "", int(live.sum())
    return Count(context.values(stored), **operations, format=name, live_in=count, live_out=count)


def plain(i: int, record: Record, context: _Context) -> Count:
    """Activations, sums, products, pooling: per element that depends on the image."""
    live = context.live(record)
    stored, count = costs.stored_values(record, live, context.stored), int(live.sum())
    elements = costs.elements(record.out_shape, count)
    operations = costs.elementwise(record, elements, context.settings)
    return Count(context.values(stored), **operations, live_in=count, live_out=count)


RULES: dict[str, Callable[[int, Record, _Context], Count]] = {
    **dict.fromkeys(costs.PER_ELEMENT, plain),
    "conv": layer,  # challenge: k k c_in h w c_out products of the nonzero weights
    "linear": layer,  # challenge: in out mults, (in - 1) out adds
    "batchnorm": batchnorm,  # challenge: "any values that are needed to perform inference"
    "avgpool": plain,  # challenge: c mults, (h w - 1) c adds
    "maxpool": plain,  # k k - 1 comparisons
    "sum": plain,  # k - 1 adds
    "variance": plain,
    "length": plain,
    "matmul": plain,  # v N mults, (v - 1) N adds, as a layer
    "stored": plain,  # challenge: every stored value counts
    "unknown": plain,  # only what it stores; reported by name
}


def count(trace: Trace, settings: Settings, gone: Tensor) -> list[Count]:
    """Cost of each record of a trace; `gone`, bool (labels,): dead channels, which cost nothing."""
    context = _Context(trace, settings, gone, StoredOnce(trace.records))
    counts = [RULES[record.kind](i, record, context) for i, record in enumerate(trace.records)]
    assert torch.tensor([c.params for c in counts]).isfinite().all()
    return counts
