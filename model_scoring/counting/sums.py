"""The sums of layers whose operands are whole numbers: how wide they get, and what they cost.

k operands of b bits have an exact sum of b + ceil(log2 k) bits: stored with an offset, each is from
0 to 2^b - 1, a subtracted one its complement, so that j levels of adders make at most
2^j (2^b - 1).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from model_compound_scaling.networks.few_values import few_values
from model_scoring.counting.settings import WORD, Settings
from model_scoring.counting.weight_formats import tree_bits
from model_scoring.tracing.layer_weights import Weights
from model_scoring.tracing.operation_record import Record


@dataclass(frozen=True)
class Sums:
    """Additions whose width --accumulators chooses."""

    number: float = 0.0
    tree: float = 0.0  # their cost in trees of adders, in 32-bit additions
    bits: int = 0  # of the largest sum that can occur
    limit: int = WORD  # bits at which trees stop to grow

    @classmethod
    def of(cls, sizes: Iterable[tuple[int, float]], width: int, limit: int) -> "Sums":
        """For pairs of operands and how many such sums there are; operands of `width` bits."""
        sizes = list(sizes)
        tree = sum(tree_bits(k, width, limit) * n for k, n in sizes) / WORD
        number = sum((k - 1) * n for k, n in sizes if k > 1)
        most = max((k for k, _ in sizes), default=0)
        return cls(number, tree, width + levels(most), limit)

    def times(self, count: float) -> "Sums":
        """As many of them."""
        return replace(self, number=self.number * count, tree=self.tree * count)

    def cost(self, settings: Settings) -> float:
        """In 32-bit additions."""
        fixed = _fixed(settings)
        return self.tree if fixed is None else self.number * fixed / WORD

    def accumulators(self, settings: Settings) -> int:
        """Bits of the widest."""
        return _fixed(settings) or min(self.bits, self.limit)


NO_SUMS = Sums()


def _fixed(settings: Settings) -> int | None:
    """Bits of every accumulator; None: each level of a tree has its own."""
    return settings.accumulators or (None if settings.tree_adder else settings.add_bits)


def levels(operands: float) -> int:
    """Of a tree of adders."""
    return math.ceil(math.log2(operands)) if operands > 1 else 0


def summed_bits(record: Record, weights: Weights, settings: Settings) -> tuple[int, int] | None:
    """Bits of the operands of a layer's sums, and at which trees stop to grow. Ternary layers sum
    activations, others products; None: those are no whole numbers."""
    bits = record.activation_bits
    if weights.ternary and bits is None:
        return settings.value_bits, WORD  # as the published tables
    if bits is None or not (weights.ternary or weights.bits):
        return None
    return bits + (0 if weights.ternary else weights.bits), settings.add_bits


def factor_bits(record: Record, weights: Weights, settings: Settings) -> int:
    """Bits of a layer's products: of the wider operand. A sum that a ternary layer multiplies with
    a value is rounded to that value's bits."""
    if weights.ternary or weights.bits is None:
        return settings.mul_bits
    return max(weights.bits, record.activation_bits or settings.mul_bits)


def weight_bits(record: Record, settings: Settings) -> int:
    """Of one of a layer's weights."""
    if record.ternary:
        return 2
    if record.weights.bits is None and (values := few_values(record.weight)) is not None:
        return max(1, (len(values) - 1).bit_length())
    return record.weights.bits or settings.value_bits
