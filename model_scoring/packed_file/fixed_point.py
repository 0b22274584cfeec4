"""Probabilities in fixed point: the same numbers on every machine, which a decoder depends on.

A probability has 16 bits. Its stretch (logit) log2(p / (1 - p)) is in units of 1/256; squash, the
logistic function, is the way back.
"""

import numpy as np

ONE = 1 << 16  # probability 1
UNIT = 256  # stretch of a probability of 2/3
SPAN = 12 * UNIT  # stretches beyond would be probabilities below 1/4096


def _log2_table() -> np.ndarray:
    """floor(256 log2 n) for n from 0 (as for 1) to 65535, bit by bit, without floating point."""
    n = np.arange(1 << 16, dtype=np.uint64)
    n[0] = 1
    whole = np.zeros(len(n), dtype=np.uint64)
    for shift in (8, 4, 2, 1):
        whole += np.uint64(shift) * (n >> (whole + np.uint64(shift)) > 0)
    mantissa = n << (np.uint64(31) - whole)  # 1 <= m < 2 as 31-bit fraction
    result = whole
    for _ in range(8):  # log2 m: the next bit is set if m^2 >= 2
        mantissa = mantissa * mantissa >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        result = result << np.uint64(1) | carry
    return result.astype(np.int32)


LOG2 = _log2_table()
_STRETCHES = LOG2[1:] - LOG2[:0:-1]  # of p = 1/65536, 2/65536, ...
# probabilities of the stretches -SPAN ... SPAN
SQUASH = np.searchsorted(_STRETCHES, np.arange(-SPAN, SPAN + 1)).astype(np.int32) + 1


def squash(stretch: np.ndarray) -> np.ndarray:
    """Probabilities of 16 bits, at least 1/4096 from 0 and 1, of integer stretches."""
    return SQUASH.take(stretch + SPAN, mode="clip")


def stretch(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """log2(yes / no) of counts from 1 to 65535."""
    return LOG2.take(yes) - LOG2.take(no)
