"""Whether a layer's codes depend on where they stand or on their neighbours.

A likelihood-ratio test of independence (G-test) for each thing that the context model looks at:
what its own probabilities for each filter, channel, tap or neighbour save, less what they cost to
learn, by the Bayesian information criterion (Schwarz 1978). It takes a fraction of the time of
coding a layer with the context model, which is wasted where there is nothing to find.
"""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray


def _bits(counts: Array) -> Array:
    """Sums of n log2 n along the last axis."""
    return (counts * np.log2(np.maximum(counts, 1))).sum(-1)


def entropy_bits(counts: Array) -> float:
    """Order-0 entropy of codes by their counts: (codes,), or the sum of (groups, codes)."""
    return float((_bits(counts.sum(-1, keepdims=True)) - _bits(counts)).sum())


def saved_bits(table: Array) -> float:
    """What probabilities of its own for each group save; negative where groups tell nothing.
    Counts of (groups, codes)."""
    codes, groups = table.sum(0), table.sum(1)
    learning = (np.count_nonzero(codes) - 1) / 2 * np.log2(np.maximum(groups, 1)).sum()
    return entropy_bits(codes) - entropy_bits(table) - float(learning)


def _tables(codes: Array) -> Iterator[Array]:
    """Counts of (groups, signs): by filter, input, tap, and by the tap to the left and above."""
    filters, inputs, *kernel = codes.shape
    # planes of one tap each: what follows runs along them
    taps = np.ascontiguousarray(codes.reshape(filters * inputs, -1).T)
    signs = (taps < 0, taps == 0, taps > 0)
    kernels = [s.sum(0, dtype=np.int32).reshape(filters, inputs) for s in signs]
    yield np.stack([k.sum(1) for k in kernels], axis=1)
    yield np.stack([k.sum(0) for k in kernels], axis=1)
    yield np.stack([s.sum(1) for s in signs], axis=1)
    width = kernel[-1] if kernel else 1
    rows = [s.reshape(-1, width, filters * inputs) for s in signs]
    yield np.array([[np.count_nonzero(a[:, :-1] & b[:, 1:]) for b in rows] for a in rows])
    yield np.array([[np.count_nonzero(a[:-1] & b[1:]) for b in rows] for a in rows])


def structure_bits(codes: Array) -> float:
    """What a context model may save of codes (filters, inputs, ...); 0 if they seem independent."""
    return sum(max(0.0, saved_bits(table)) for table in _tables(codes))
