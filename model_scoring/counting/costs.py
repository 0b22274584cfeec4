"""What both rule sets share: a count, the costs of element-wise operations, and the data flow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from model_scoring.counting.settings import Settings
from model_scoring.counting.stored_once import StoredOnce
from model_scoring.counting.sums import NO_SUMS, Sums, weight_bits
from model_scoring.counting.weight_formats import cheapest
from model_scoring.tracing.layer_weights import Weights, grouped
from model_scoring.tracing.operation_record import Record, Trace

# kind -> (multiplications, additions) per output element. A comparison, an exponential and a
# division count as one multiplication each.
PER_ELEMENT = {
    "relu": (1, 0),  # challenge: max(x, 0) is one multiplication
    "relu6": (2, 0),  # two comparisons
    "leaky_relu": (2, 0),  # comparison, product
    "elu": (3, 1),  # comparison, exp, - 1, product
    "log_sigmoid": (3, 1),  # log of a sigmoid
    "swish": (3, 1),  # challenge: x / (1 + exp(-x))
    "sigmoid": (2, 1),  # challenge: exp(x) / (1 + exp(x))
    "hardsigmoid": (3, 1),  # min(max(x + 3, 0), 6) / 6
    "hardswish": (4, 1),  # hard sigmoid, times x
    "tanh": (3, 2),  # (e - 1) / (e + 1) with e = exp(2x)
    "gelu": (4, 1),  # x / 2 (1 + erf(x / sqrt 2)), erf as one
    "softplus": (2, 1),  # log(1 + exp(x))
    "mish": (6, 3),  # x tanh(softplus(x))
    "function": (1, 0),  # exp and the like, as in the challenge's sigmoid
    "shifted_function": (1, 1),  # log(1 + x), exp(x) - 1
    "compare": (1, 0),  # as ReLU
    "softmax": (3, 2),  # comparison and subtraction of the largest, exp, sum, division
    "norm": (3, 4),  # mean, variance, difference; scale and shift
    "batchnorm": (1, 1),  # with scale or shift from the image
    "add": (0, 1),  # residual sums
    "sign": (0, 0),  # part of the next operation
    "round": (1, 0),  # as a comparison
    "quantize": (5, 0),  # scale, rounding, two bounds, product with the step
    "straight_through": (0, 0),  # for gradients only
    "scale": (1, 0),  # squeeze-and-excitation product
}
# kinds that add up whole numbers, if they get some -> how many of them each operand is made of
FACTORS = {"avgpool": 1, "sum": 1, "matmul": 2}
# and those whose multiplications are as wide as these
NARROW = ("relu", "relu6", "maxpool", "compare", "matmul")
# the same for outputs made of n elements each
PER_WINDOW: dict[str, Callable[[float], tuple[float, float]]] = {
    "avgpool": lambda n: (1, n - 1),  # challenge: c mults, (h w - 1) c adds
    "sum": lambda n: (0, n - 1),
    "maxpool": lambda n: (n - 1, 0),  # comparisons
    "matmul": lambda n: (n, n - 1),  # v N mults, (v - 1) N adds, as a layer
    "variance": lambda n: (n + 2, 3 * n - 2),  # mean, differences, their squares' mean
    "length": lambda n: (n + 1, n - 1),  # root of a sum of squares
}


@dataclass(frozen=True)
class Count:
    """Cost of one operation: parameters of 32 bits, operations on 32-bit operands."""

    params: float = 0.0
    adds: float = 0.0
    mults: float = 0.0
    format: str = ""
    live_in: int = 0
    live_out: int = 0
    weights: int = 0  # left when dead channels are gone
    nonzeros: int = 0
    weight_bits: int | None = None
    activation_bits: int | None = None  # of what it takes
    accumulator_bits: int | None = None  # the widest
    sums: Sums = NO_SUMS  # those of its additions whose width --accumulators chooses

    @property
    def ops(self) -> float:
        return self.adds + self.mults


@dataclass(frozen=True)
class Live:
    """What is left of a convolution or linear layer without dead channels."""

    inputs: Tensor  # bool (groups, inputs per group)
    filters: Tensor  # bool (groups, filters per group)
    weights: Weights  # 0 where a channel is dead

    @classmethod
    def of(cls, weights: Weights, inputs: Tensor, filters: Tensor) -> "Live":
        """From a layer's weights and masks of its channels."""
        live = cls(inputs, filters, weights)
        if inputs.all() and filters.all():
            return live
        high = weights.high if weights.high is None else weights.high * live.kept
        return replace(live, weights=replace(weights, counts=weights.counts * live.kept, high=high))

    @property
    def kept(self) -> Tensor:
        """bool (groups, filters, inputs)"""
        return self.filters[:, :, None] & self.inputs[:, None, :]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weights.kernel * int((self.inputs.sum(1) * self.filters.sum(1)).sum())

    @property
    def rows(self) -> int:
        """Number of filters."""
        return int(self.filters.sum())


@dataclass(frozen=True)
class Context:
    """What a rule needs to know beside its record; each rule set adds to it."""

    trace: Trace
    settings: Settings

    @cached_property
    def stored(self) -> StoredOnce:
        """What the records counted so far store."""
        return StoredOnce(self.trace.records)


def layer(record: Record, live: Live, context: Context, *, whole: bool) -> Count:
    """Storage of a layer's weights, without operations."""
    stored = context.stored
    weights, n, rows = live.weights, live.size, live.rows
    z = int(weights.counts.sum())
    found = Count(live_in=int(live.inputs.sum()), live_out=rows, weights=n, nonzeros=z)
    if stored.shared(record.weight):
        parts = grouped(record.weight, len(weights.counts))
        wanted = live.kept[..., None].expand(parts.shape).reshape(record.weight.shape)
        new = stored.new(record.weight, wanted).reshape(parts.shape)
        n, z, rows = int(new.sum()), int((new & (parts != 0)).sum()), int(new.any(3).any(2).sum())
    settings, bits = context.settings, 0 if weights.ternary else weights.bits or 0
    options = {"ternary": weights.ternary, "settings": settings, "whole": whole, "bits": bits}
    name, params = cheapest(n, z, rows, **options)
    return replace(found, params=params, format=name if n or not found.weights else "shared")


def own_steps(i: int, live: Live, context: Context) -> int:
    """Steps of a layer's whole weights that no BatchNorm's scale takes: its sums are multiplied
    with them."""
    merged = live.weights.ternary or context.trace.batchnorm_after(i) is not None
    return 0 if merged else min(live.weights.steps, live.rows)


def with_widths(count: Count, record: Record, settings: Settings) -> Count:
    """A record's count with the bits of its weights, activations and accumulators."""
    count = replace(count, activation_bits=record.activation_bits or settings.value_bits)
    if record.weights is None:
        return count
    widest = count.sums.accumulators(settings) if count.sums.bits else settings.add_bits
    bits = weight_bits(record, settings)
    return replace(count, weight_bits=bits, accumulator_bits=widest)


def stored_values(record: Record, live: Tensor | None, stored: StoredOnce) -> int:
    """Values beside weights that a record is the first to store; of those that differ by channel
    only what channels need that are `live`, bool, as they lie in the result."""
    found = 0
    for tensor in record.stores:
        wanted = torch.ones(tensor.shape, dtype=torch.bool)
        if live is not None and live.dim() >= tensor.dim():
            needed = live  # broadcasting aligns the last dimensions
            while needed.dim() > tensor.dim():
                needed = needed.amax(0)
            sizes = list(zip(needed.shape, tensor.shape, strict=True))
            if all(1 in pair or len(set(pair)) == 1 for pair in sizes):
                for d, (_, size) in enumerate(sizes):
                    needed = needed.amax(d, keepdim=True) if size == 1 else needed
                wanted &= needed
        found += int(stored.new(tensor, wanted).sum())
    return found


def positions(record: Record) -> int:
    """Output elements per filter: pixels of a convolution, rows of a linear layer."""
    return math.prod(record.out_shape) // record.weights.filters


def elementwise(record: Record, live: int, stored: int, settings: Settings) -> Count:
    """An operation without weights, for so many channels of its result and stored values."""
    n, windowed = elements(record, live), PER_WINDOW.get(record.kind)
    mults, adds = windowed(record.window) if windowed else PER_ELEMENT.get(record.kind, (0, 0))
    bits, sums = record.activation_bits, NO_SUMS
    if bits and record.kind in FACTORS:
        width = FACTORS[record.kind] * bits
        sums = Sums.of([(record.window, n)], width, settings.add_bits)
        adds = 0
    mults, adds = mults + record.extra[0], adds + record.extra[1]
    operations = settings.operations(adds * n, mults * n, bits if record.kind in NARROW else None)
    operations["adds"] += sums.cost(settings)
    params = settings.parameters(stored)
    return Count(params, **operations, live_in=live, live_out=live, sums=sums)


def elements(record: Record, live: int) -> int:
    """Elements of so many channels of its result."""
    return math.prod(record.out_shape) // record.width * live
