"""How many bits a layer's weights take in each storage format, and which format is cheapest.

n weights, z of them not zero, in R rows (filters); a value takes b bits (16, or 32 without half
precision). Sources: MicroNet challenge 2019 (bit mask); Becking 2020, section 4 (the others).
"""

import math
from functools import cache

from model_scoring.counting.settings import WORD, Settings


def ternary_bits(n: int, z: int, rows: int, bits: int, formats: bool) -> list[tuple[str, int]]:
    """Formats that make use of ternary weights; both values are stored once."""
    values = 2 * bits
    two_masks = ("Ternary scoring scheme 1", 2 * n + values)
    if not formats:
        return [two_masks]
    return [
        ("CSR", z * (bits + 1) + bits * (rows + 1) + values),  # column and sign, row ends
        ("CER", z * bits + 2 * bits * (rows + 1) + values),  # columns by value, two ends a row
        two_masks,
        ("Ternary scoring scheme 2", n + z + values),  # mask, and a sign per nonzero weight
    ]


def cheapest(
    n: int, z: int, rows: int, *, ternary: bool, settings: Settings, whole: bool, bits: int = 0
) -> tuple[str, float]:
    """Name of the cheapest format and its parameters of 32 bits. `whole`, as the published tables:
    ternary ones are rounded up to whole parameters before the comparison, and a single zero already
    asks for a mask. `bits` of whole numbers; 0: values as the settings have them."""
    if n == 0:
        return "none", 0.0
    bits = bits or settings.value_bits
    found = []
    if z < n:  # all nonzero values, and a mask of one bit per weight
        found.append(("bitmask", (bits * z + n) / WORD))
    if z == n or not whole:
        found.append(("dense", bits * n / WORD))
    if ternary:
        for name, size in ternary_bits(n, z, rows, bits, settings.formats):
            found.append((name, math.ceil(size / WORD) if whole else size / WORD))
    return min(found, key=lambda pair: pair[1])


@cache
def tree_bits(operands: float, width: int, limit: int = WORD) -> float:
    """Bits added when a tree of adders sums operands of `width` bits. Each level adds pairs and its
    results are a bit wider, up to `limit`. An odd one out joins a later level, where the other
    operand is at least as wide."""
    width = min(width, limit)
    total = 0.0
    while operands > 1:
        total += operands // 2 * width
        operands = math.ceil(operands / 2)
        width = min(width + 1, limit)
    return total
