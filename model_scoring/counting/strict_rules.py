"""Rule set `strict`: the MicroNet challenge's written rules, with nothing left out.

Every filter is counted with its own nonzeros. Channels go only where the network provably computes
the same function, and a layer that loses channels stores one bit per channel of that side.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from model_compound_scaling.networks.few_values import PROBE, few_values, ternary_values
from model_scoring.counting import costs
from model_scoring.counting.costs import Context, Count, Live
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.stored_once import Vectors, entries, places, repeats
from model_scoring.counting.sums import NO_SUMS, Sums, factor_bits, summed_bits
from model_scoring.tracing.layer_weights import Weights, grouped, with_values
from model_scoring.tracing.operation_record import Record, Trace


@dataclass(frozen=True)
class Network(Context):
    """The network with its dead channels."""

    gone: Tensor  # bool (labels,): those channels

    def live(self, record: Record) -> Tensor:
        """bool, as the record's labels: channels that depend on the image and are needed."""
        if record.labels is None:
            return torch.ones((), dtype=torch.bool)
        return record.constants.isnan() & ~self.gone[record.labels]

    @cached_property
    def left(self) -> list[Live | None]:
        """What is left of each layer when dead channels are gone."""
        return [r.weights and _left(r, self.live(r)) for r in self.trace.records]


def _left(record: Record, live: Tensor) -> Live:
    """Of a layer the filters that are `live`, bool (c_out,), and the inputs that take arithmetic in
    any of them; ternary or not by their weights alone: its zeros may have left with dead channels,
    so that two values will do without."""
    filters = live.reshape(record.weights.counts.shape[:2])
    left = Live.of(record.weights, record.used(filters), filters)
    weights = left.weights
    if weights.ternary:
        dense = int(weights.counts.sum()) == left.size
        both = dense and weights.high.any() and (weights.counts - weights.high).any()
        # one value without 0 is no choice
        return replace(left, weights=replace(weights, high=None)) if dense and not both else left
    parts, kept = grouped(record.weight, len(filters)), left.kept
    flat = (parts if bool(kept.all()) else parts[kept]).flatten()
    if len(flat[:PROBE].unique()) > 3:
        return left
    values = ternary_values(torch.cat([flat.new_zeros(1), flat]))
    if values is None or (values[0] == values[1] and bool(flat.all())):
        return left
    return Live.of(with_values(record.weights, parts, values), left.inputs, filters)


def _nonzero_constants(constants: Tensor | None) -> int:
    """Constant channels whose value has to be stored."""
    return 0 if constants is None else int(((constants != 0) & ~constants.isnan()).sum())


@dataclass(frozen=True)
class Work:
    """Arithmetic of a layer per output position, all filters."""

    sums: Sums
    adds: float  # beside those sums, at --add-bits
    mults: float  # at --mul-bits

    def added(self, settings: Settings) -> float:
        """All additions, in such of --add-bits."""
        full = settings.add_bits / WORD
        return (self.sums.cost(settings) + self.adds * full) * (WORD / settings.add_bits)

    def operations(self, settings: Settings) -> float:
        """In units of 32-bit operations."""
        return sum(settings.operations(self.added(settings), self.mults).values())


def _products(record: Record, weights: Weights, settings: Settings) -> Work:
    """A product for each of a filter's k nonzero weights, k - 1 additions."""
    nonzeros, bits = weights.counts.sum(-1), summed_bits(record, weights, settings)
    mults = float(nonzeros.sum()) * factor_bits(record, weights, settings) / settings.mul_bits
    if bits is None:
        return Work(NO_SUMS, float((nonzeros - 1).clamp(min=0).sum()), mults)
    return Work(Sums.of(_sizes(nonzeros), *bits), 0.0, mults)


def _sizes(counts: Tensor) -> Iterable[tuple[int, int]]:
    sizes, many = (part.tolist() for part in counts.unique(return_counts=True))
    return zip(sizes, many, strict=True)


def _by_value(sides: list[Tensor], bits: tuple[int, int]) -> Work:
    """w_p (sum of one side) + w_n (sum of the other), and so on for more values: a sum for each, of
    so many operands for each filter, a product each, and additions of the products. With w_n = -w_p
    one sum of differences and one product do. `bits` as in `summed_bits`."""
    mults = float(sum((side > 0).sum() for side in sides))
    joined = (torch.stack(sides).count_nonzero(0) - 1).clamp(min=0)
    return Work(Sums.of(_sizes(torch.cat(sides)), *bits), float(joined.sum()), mults)


def _work(record: Record, live: Live, settings: Settings) -> Work:
    """The cheapest way to compute a layer."""
    weights = live.weights
    if weights.ternary:
        nonzeros, high = weights.counts.sum(-1), weights.high.sum(-1)
        sides = [nonzeros] if weights.same_magnitude else [high, nonzeros - high]
        return _by_value(sides, summed_bits(record, weights, settings))
    found = _products(record, weights, settings)
    if record.activation_bits is None or weights.bits:
        return found
    parts, kept = grouped(record.weight, len(weights.counts)), live.kept
    values = few_values(parts[kept])
    if values is None or not values.any():
        return found
    parts = parts.abs() * kept[..., None]
    sides = [(parts == size).sum((2, 3)) for size in values.abs().unique() if size]
    ways = found, _by_value(sides, (record.activation_bits, settings.add_bits))
    return min(ways, key=lambda way: way.operations(settings))


def layer(i: int, record: Record, network: Network) -> Count:
    """v N mults, (v - 1) N adds, with a bias N more; v nonzeros per filter, N outputs."""
    settings, at, live = network.settings, costs.positions(record), network.left[i]
    count = costs.layer(record, live, network, whole=False)
    work = _work(record, live, settings)
    adds, mults = work.added(settings), work.mults
    steps = costs.own_steps(i, live, network)
    mults += live.rows * bool(steps)
    masks = sum(m.numel() for m in (live.inputs, live.filters) if not bool(m.all()))
    biases, made_of = _biases(i, record, network)
    stored = _stored_biases(biases, made_of, network) + _nonzero_constants(record.constants)
    stored += costs.stored_values(record, None, network.stored) + steps * (not record.shared)
    more, shared = record.extra, count.format == "shared"
    masks = masks / WORD if live.rows and not shared else 0.0
    adds, mults = adds + int(biases.sum()) + more[1] * live.rows, mults + more[0] * live.rows
    return replace(
        count,
        params=count.params + settings.parameters(stored) + masks,
        **settings.operations(adds * at, mults * at),
        sums=work.sums.times(at),
    )


def _biases(i: int, record: Record, network: Network) -> tuple[Tensor, Vectors]:
    """bool (c_out,): live filters that add a number of their own, and the vectors that these
    numbers are made of, none if they are this layer's alone. Constants of inputs make one, or
    change it, unless a BatchNorm takes them; a BatchNorm that folds changes it as well."""
    biased, made_of = torch.zeros(record.weights.filters, dtype=torch.bool), ()
    if record.bias is not None:
        biased, made_of = record.bias != 0, (record.bias,)
    folded = record.folded
    if network.trace.takes_shifts(i) is None and bool(folded.any()):
        return (biased | folded) & network.live(record), ()
    after = network.trace.batchnorm_after(i)
    norm = None if after is None else network.trace.records[after]
    if made_of and norm is not None and folds(norm, network) is not None:
        made_of = (*made_of, *norm.state)
    return biased & network.live(record), made_of


def _stored_biases(biases: Tensor, made_of: Vectors, network: Network) -> int:
    """How many of a layer's biases are not stored yet."""
    if len(made_of) == 1:
        return int(network.stored.new(made_of[0], biases).sum())
    return network.stored.new_entries("bias", made_of, biases) if made_of else int(biases.sum())


def folds(record: Record, network: Network) -> int | None:
    """The layer whose weights a BatchNorm can be multiplied into: full precision, and used nowhere
    else than before the same channels of this BatchNorm."""
    if len(record.inputs) != 1:
        return None
    records, after, (before,) = network.trace.records, network.trace.batchnorm_after, record.inputs
    if records[before].weights is None or after(before) is None:
        return None
    norms = {j: after(j) for j in network.stored.users_of(records[before].weight)}
    if network.left[before].weights.coded or any(
        n is None or records[j].weight is None for j, n in norms.items()
    ):
        return None
    pairs = [(records[j].weight, records[n].state) for j, n in norms.items()]
    return before if _one_scale(pairs) else None


def _one_scale(pairs: list[tuple[Tensor, Vectors]]) -> bool:
    """Whether each value of weights that share memory has one scale only, in all BatchNorms after
    them."""
    if len(pairs) == 1 and not repeats(pairs[0][0]):
        return True
    scales: dict[int, Hashable] = {}  # place -> what the scale is made of
    for weight, state in pairs:
        for row, entry in zip(places(weight).flatten(1).tolist(), entries(state), strict=True):
            if any(scales.setdefault(place, entry) != entry for place in row):
                return False
    return True


def batchnorm(i: int, record: Record, network: Network) -> Count:
    """Scale and bias per channel, a mult and an add per element; the scale is free if it folds, and
    the bias where the layer has its own."""
    if not record.folds:
        return plain(i, record, network)
    live, source = network.live(record), folds(record, network)
    biased = live.clone()
    if source is not None:
        before = network.trace.records[source]
        own, _ = _biases(source, before, network)
        if None not in (record.labels, before.labels):  # channels may have changed places
            own = torch.isin(record.labels, before.labels[own])
        biased &= ~own
    scaled = torch.zeros_like(live) if source is not None else live
    parts = (("shift", biased), ("scale", scaled))
    stored = sum(network.stored.new_entries(p, record.state, mask) for p, mask in parts)
    params = network.settings.parameters(stored + _nonzero_constants(record.constants))
    at = costs.elements(record, 1)
    operations = network.settings.operations(int(biased.sum()) * at, int(scaled.sum()) * at)
    name, count = "folded" if source is not None else "", int(live.sum())
    return Count(params, **operations, format=name, live_in=count, live_out=count)


def plain(i: int, record: Record, network: Network) -> Count:
    """Activations, sums, products, pooling: per element that depends on the image."""
    live = network.live(record)
    stored = costs.stored_values(record, live, network.stored)
    count = int(live.sum()) * record.width // live.numel()
    return costs.elementwise(record, count, stored, network.settings)


RULES: dict[str, Callable[[int, Record, Network], Count]] = {
    **dict.fromkeys((*costs.PER_ELEMENT, *costs.PER_WINDOW), plain),
    "conv": layer,  # challenge: k k c_in h w c_out products of the nonzero weights
    "linear": layer,  # challenge: in out mults, (in - 1) out adds
    "batchnorm": batchnorm,  # challenge: "any values that are needed to perform inference"
    "stored": plain,  # challenge: every stored value counts
    "unknown": plain,  # only what it stores; reported by name
}


def count(trace: Trace, settings: Settings, gone: Tensor) -> list[Count]:
    """Cost of each record of a trace; `gone`, bool (labels,): dead channels, which cost nothing."""
    network = Network(trace, settings, gone)
    counts = [
        costs.with_widths(RULES[record.kind](i, record, network), record, settings)
        for i, record in enumerate(trace.records)
    ]
    assert torch.tensor([c.params for c in counts]).isfinite().all()
    return counts
