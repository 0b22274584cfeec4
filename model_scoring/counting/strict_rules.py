"""Rule set `strict`: the MicroNet challenge's written rules, with nothing left out.

Every filter is counted with its own nonzeros. Channels go only where the network provably computes
the same function, and a layer that loses channels stores one bit per channel of that side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_scoring.counting import costs
from model_scoring.counting.costs import Count, Live
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.weight_formats import tree_bits
from model_scoring.tracing.operation_record import Record, Trace


@dataclass(frozen=True)
class _Context:
    trace: Trace
    settings: Settings
    gone: Tensor  # bool (labels,): dead channels

    def live(self, record: Record) -> Tensor:
        """bool (c,): channels of a record's result that depend on the image and are needed."""
        live = torch.ones(costs.channels(record.out_shape), dtype=torch.bool)
        if record.constants is not None:
            live &= record.constants.isnan()
        if record.labels is not None:
            live &= ~self.gone[record.labels]
        return live

    def values(self, number: int) -> float:
        """Parameters of so many stored values."""
        return number * self.settings.value_bits / WORD


def live_channels(record: Record, live: Tensor) -> Live:
    """Filters that are `live` (c_out,), inputs that take arithmetic in any of them."""
    counts = record.weights.counts
    groups, filters, inputs = counts.shape
    alive = live.reshape(groups, filters)
    used = (counts * alive[:, :, None]).any(1)
    if record.free_inputs is not None:
        used &= ~record.free_inputs.reshape(groups, inputs)
    return Live(used, alive)


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
    live = live_channels(record, context.live(record))
    count = costs.stored_layer(record.weights, live, settings, whole=False)
    if record.weights.ternary:
        adds, mults = _ternary(record, live, settings)
        adds *= WORD / settings.add_bits
    else:
        nonzeros = live.keep(record.weights.counts).sum(-1)
        adds, mults = _plain_sums(nonzeros), float(nonzeros.sum())
    masks = sum(m.numel() for m in (live.inputs, live.filters) if not bool(m.all()))
    # constants that fold make a bias, unless a BatchNorm has one to take them
    folded = record.folded and context.trace.batchnorm_after(i) is None
    biases = live.rows * (record.bias or folded)
    stored = biases + _nonzero_constants(record.constants)
    return replace(
        count,
        params=count.params + context.values(stored) + (masks / WORD if live.rows else 0.0),
        **costs.scaled((adds + biases) * at, mults * at, settings),
    )


def folds(record: Record, context: _Context) -> Record | None:
    """The layer whose weights a BatchNorm can be multiplied into: full precision, no other user."""
    if len(record.inputs) != 1:
        return None
    source = context.trace.records[record.inputs[0]]
    alone = len(context.trace.consumers[record.inputs[0]]) == 1
    free = source.weights is not None and not source.weights.ternary and not source.shared
    return source if alone and free and source.out_shape == record.in_shape else None


def batchnorm(i: int, record: Record, context: _Context) -> Count:
    """Scale and bias per channel, a mult and an add per element; the scale is free if it folds."""
    live, source = int(context.live(record).sum()), folds(record, context)
    bias = 0 if source and source.bias else 1  # else it becomes part of the layer's own
    scale = 0 if source else 1
    stored = (bias + scale) * live + _nonzero_constants(record.constants)
    at = costs.elements(record.out_shape, live)
    operations = costs.scaled(bias * at, scale * at, context.settings)
    name = "folded" if source else ""
    return Count(context.values(stored), **operations, format=name, live_in=live, live_out=live)


def plain(i: int, record: Record, context: _Context) -> Count:
    """Activations, sums, products, pooling: per element that depends on the image."""
    live = int(context.live(record).sum())
    elements = costs.elements(record.out_shape, live)
    operations = costs.elementwise(record, elements, context.settings)
    return Count(context.values(record.stored), **operations, live_in=live, live_out=live)


RULES: dict[str, Callable[[int, Record, _Context], Count]] = {
    "conv": layer,  # challenge: k k c_in h w c_out products of the nonzero weights
    "linear": layer,  # challenge: in out mults, (in - 1) out adds
    "batchnorm": batchnorm,  # challenge: "any values that are needed to perform inference"
    "avgpool": plain,  # challenge: c mults, (h w - 1) c adds
    "maxpool": plain,  # k k - 1 comparisons
    "sum": plain,  # k - 1 adds
    "matmul": plain,  # v N mults, (v - 1) N adds, as a layer
    "stored": plain,  # challenge: every stored value counts
    "unknown": plain,  # only what it stores; reported by name
    **dict.fromkeys(costs.PER_ELEMENT, plain),
}


def count(trace: Trace, settings: Settings, gone: Tensor) -> list[Count]:
    """Cost of each record of a trace; `gone`, bool (labels,): dead channels, which cost nothing."""
    context = _Context(trace, settings, gone)
    counts = []
    for i, record in enumerate(trace.records):
        cost = RULES[record.kind](i, record, context)
        counts.append(replace(cost, params=0.0, format="shared") if record.shared else cost)
    assert torch.tensor([c.params for c in counts]).isfinite().all()
    return counts
