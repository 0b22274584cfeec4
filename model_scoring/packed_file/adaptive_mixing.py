"""Adaptive probabilities and the logistic mixing of them, as in PAQ (context mixing).

Running counts of zeros and ones in a context give its adaptive probability. A mixer adds several of
them in the logistic domain, with weights learned on the way by gradient descent on the code length:
Mahoney 2005, "Adaptive weighing of context models for lossless data compression". Everything is
done for several layers at once, (layers, lanes), in integers (fixed point), so that encoder and
decoder agree on any machine.
"""

import math
from collections.abc import Sequence

import numpy as np

from model_scoring.packed_file.fixed_point import ONE, SPAN, UNIT, squash, stretch

Array = np.ndarray
COUNT = 16  # one observation
MOST = 1 << 15  # a context whose counts add up to this forgets half
MIX_BITS, STORED_BITS = 12, 28  # fractions of mixing weights: in products, and kept
BUCKET_BITS = 7
BUCKET = 1 << BUCKET_BITS  # stretches that are corrected alike
MOST_WEIGHT = 3 << STORED_BITS
RATE = 16384  # learning rate of 1/16, in 18 bits


def initial_counts(prior: Array, strength: int) -> tuple[Array, Array]:
    """Zeros and ones worth `strength` observations of probability squash(prior)."""
    total = COUNT * strength
    ones = np.maximum(total * squash(prior).astype(np.int64) // ONE, 1)
    return np.maximum(total - ones, 1), ones


class LaneCounts:
    """Adaptive probability of each lane: zeros and ones seen in it, (layers, lanes)."""

    def __init__(self, prior: Array, strength: int, lanes: int) -> None:
        self.zeros, self.ones = (c.repeat(lanes, 1) for c in initial_counts(prior, strength))

    def predict(self, block: slice) -> Array:
        """Stretches of a one, of the lanes in a block."""
        self.block = block
        return stretch(self.ones[:, block], self.zeros[:, block])

    def update(self, bits: Array, active: Array, where: Array | None) -> None:
        self.ones[:, self.block] += COUNT * bits
        self.zeros[:, self.block] += COUNT * (active - bits)

    def forget(self) -> None:
        """Keep the counts within bounds; needed now and then, not at every step."""
        over = self.ones + self.zeros >= MOST
        for counts in (self.zeros, self.ones):
            counts >>= over
            np.maximum(counts, 1, out=counts)


class ContextCounts:
    """Adaptive probabilities of `classes` sets of `size` contexts, for each layer its own.

    They start as `strength` observations of probability squash(prior); prior: (layers, 1 or size).
    """

    def __init__(self, prior: Array, strength: int, *, size: int = 1, classes: int = 1) -> None:
        each = np.broadcast_to(prior, (len(prior), size)).reshape(-1)
        pairs = np.stack(initial_counts(each, strength), axis=1)
        self.initial = np.tile(pairs, (classes, 1, 1))
        self.base = size * np.arange(len(prior))[:, None]
        self.reset()

    def reset(self) -> None:
        self.counts = self.initial.copy()

    def predict(self, which: int = 0, context: Array | int = 0) -> Array:
        """Stretches in contexts (layers, lanes); (layers, 1) where they are the same."""
        self.table, self.at = self.counts[which], self.base + context
        return stretch(self.table[:, 1], self.table[:, 0]).take(self.at)

    def update(self, bits: Array, active: Array, where: Array | None) -> None:
        table = self.table
        if self.at.shape[1] == 1:  # one context for all lanes of a layer: no need to sort them
            ones = bits.sum(1)
            table[self.at[:, 0]] += COUNT * np.stack([active.sum(1) - ones, ones], axis=1)
        else:
            pairs = (2 * self.at + bits).reshape(-1)
            pairs = pairs if where is None else pairs.take(where)
            table += COUNT * np.bincount(pairs, minlength=table.size).reshape(table.shape)
        over = table[:, 0] + table[:, 1] >= MOST
        if over.any():
            table >>= over[:, None]
            np.maximum(table, 1, out=table)


class Mixer:
    """Logistic mixing of several stretches into one probability, of a bit in every lane.

    The mixing weights (one per input and layer) start at `weights`; inputs and weights apply to
    differences from the layer's prior. Where `informed` (layers, 1) is 0 they are, and stay, 0.
    """

    def __init__(self, prior: Array, informed: Array, weights: Sequence[float], lanes: int) -> None:
        start = np.array([round(w * (1 << STORED_BITS)) for w in weights], dtype=np.int64)
        self.weights = start[:, None, None] * informed
        self.prior, self.rate = prior, RATE // math.isqrt(256 * lanes) * informed

    def mix(self, stretches: Sequence[Array], signals: Sequence[Array]) -> Array:
        """Stretch of a one, from stretches and small integers (layers, lanes or 1); the first has
        the shape (layers, lanes)."""
        shape = (len(self.weights), *stretches[0].shape)
        self.inputs = np.empty(shape, dtype=np.int32)
        for x, stretched in zip(self.inputs, stretches, strict=False):
            np.subtract(stretched, self.prior, out=x)
        for x, signal in zip(self.inputs[len(stretches) :], signals, strict=True):
            np.multiply(signal, UNIT, out=x, dtype=np.int32)
        factors = (self.weights >> STORED_BITS - MIX_BITS).astype(np.int32)
        total = (self.prior << MIX_BITS) + np.einsum("il,iln->ln", factors[:, :, 0], self.inputs)
        mixed = np.minimum(np.maximum(total >> MIX_BITS, -SPAN), SPAN)  # faster than clip
        self.p = squash(mixed)
        return mixed

    def update(self, bits: Array, active: Array) -> None:
        """Move the mixing weights along the gradient of the code length: input x (bit - p)."""
        error = ((bits << 16) - active * self.p) >> 4
        slopes = np.einsum("iln,ln->il", self.inputs, error, dtype=np.int64)
        self.weights += slopes[:, :, None] * self.rate >> 6
        np.clip(self.weights, -MOST_WEIGHT, MOST_WEIGHT, out=self.weights)


class ContextModel:
    """A mixer, the counts it rests on, and a last correction by how often similar probabilities
    were right (PAQ's adaptive probability map, or secondary symbol estimation). Subclasses say
    which contexts the counts are kept for."""

    def __init__(self, mixer: Mixer, *parts: LaneCounts | ContextCounts) -> None:
        buckets = np.arange(-SPAN, SPAN + 1, BUCKET)
        layers = len(mixer.prior)
        self.correction = ContextCounts(np.tile(buckets, (layers, 1)), 25, size=len(buckets))
        self.mixer, self.parts = mixer, (*parts, self.correction)

    def mix(self, stretches: Sequence[Array], signals: Sequence[Array] = ()) -> Array:
        """Probability of a one, in 16 bits."""
        mixed = self.mixer.mix(stretches, signals)
        corrected = self.correction.predict(0, mixed + (SPAN + BUCKET // 2) >> BUCKET_BITS)
        return squash(3 * mixed + corrected >> 2)

    def update(self, bits: Array, active: Array | None = None) -> None:
        """Take what the bits (layers, lanes) of 0 and 1 turned out to be, where `active`."""
        # lanes where nothing was asked must not count as zeros
        where = None if active is None else np.flatnonzero(active)
        active = np.ones_like(bits) if active is None else active
        self.mixer.update(bits, active)
        for part in self.parts:
            part.update(bits, active, where)
