"""Codes of layers whose weights are independent: static frequencies and many interleaved coders.

Nothing is learned on the way, so that all lanes of all layers take a step together: up to GROUP
codes, which are one symbol, a lane. Each lane is a rANS coder of its own (rans_coder.py has the
arithmetic), the lanes of a layer share its words, and a layer's bytes do not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_scoring.packed_file.fixed_point import LOG2, ONE
from model_scoring.packed_file.rans_coder import LOWEST, MASK

Array = np.ndarray
LANE = 16384  # weights of a lane at least, if there are as many. Each costs 4 bytes, few time
GROUP, MOST_SYMBOLS = 3, 64  # with more symbols, those that are hardly possible cost too much
TOGETHER = 256  # layers that are decoded at once: each takes 128 KiB on the way
# a share s is recorded as -16 log2(s): what 0 ... 255 stand for, in 1/65536
SHARES = np.searchsorted(LOG2, 4096 - 16 * np.arange(256))


def shares(counts: Array) -> Array:
    """Shares of codes as a file records them, uint8."""
    parts = np.clip(counts * ONE // max(int(counts.sum()), 1), 1, ONE - 1)
    return np.minimum(4096 - LOG2[parts] + 8 >> 4, 255).astype(np.uint8)


@dataclass(frozen=True)
class StaticLayer:
    """What decides how a layer of `weights` codes 0 ... n - 1 is coded: the n `shares` of them."""

    weights: int
    shares: Array  # uint8

    @property
    def lanes(self) -> int:
        return max(1, self.weights // LANE)

    @cached_property
    def group(self) -> int:
        """Codes in a symbol."""
        fitting = (g for g in range(2, GROUP + 1) if len(self.shares) ** g <= MOST_SYMBOLS)
        return max(fitting, default=1)

    @property
    def steps(self) -> int:
        return -(-self.weights // (self.lanes * self.group))

    @cached_property
    def cuts(self) -> Array:
        """Bounds of the symbols' intervals in 0 ... 65536, each at least 1 wide."""
        single = SHARES[self.shares] * ONE // SHARES[self.shares].sum()
        single[np.argmin(self.shares)] += ONE - single.sum()
        each = single = single.astype(np.uint64)
        for _ in range(self.group - 1):
            each = np.multiply.outer(each, single).reshape(-1)
        below = np.concatenate([[0], each.cumsum()]).astype(np.uint64)
        # below ends at 65536^group; with GROUP = 3 the product stays below 2^64
        scaled = below * np.uint64(ONE - len(each)) >> np.uint64(16 * self.group)
        return scaled.astype(np.int64) + np.arange(len(below))

    def symbols(self, codes: Array) -> Array:
        """(steps, lanes) of flat codes, the last ones filled up with the most frequent code."""
        missing = self.steps * self.lanes * self.group - self.weights
        codes = np.pad(codes, (0, missing), constant_values=int(np.argmin(self.shares)))
        parts = codes.astype(np.uint16).reshape(-1, self.group).T
        symbol = parts[0]
        for part in parts[1:]:
            symbol = symbol * np.uint16(len(self.shares)) + part
        return symbol.reshape(self.steps, self.lanes)

    def codes(self, symbols: Array) -> Array:
        """The flat codes again, uint16."""
        every = np.indices((len(self.shares),) * self.group, dtype=np.uint16)
        table = every.reshape(self.group, -1).T
        return table[symbols.reshape(-1)].reshape(-1)[: self.weights]


class _Lanes:
    """The lanes of several layers side by side, those with the most steps first, so that the ones
    that still have something to code are the first `active[step]`."""

    def __init__(self, layers: Sequence[StaticLayer]) -> None:
        self.order = sorted(range(len(layers)), key=lambda i: -layers[i].steps)
        self.layers = [layers[i] for i in self.order]
        lanes = np.array([layer.lanes for layer in self.layers])
        self.owner = np.arange(len(lanes)).repeat(lanes)
        self.ends = lanes.cumsum()
        sizes = np.array([len(layer.cuts) - 1 for layer in self.layers])
        self.table = (sizes.cumsum() - sizes).repeat(lanes)  # where a lane's frequencies begin
        cuts = [layer.cuts for layer in self.layers]
        self.start = np.concatenate([c[:-1] for c in cuts]).astype(np.uint32)
        self.frequency = np.concatenate([np.diff(c) for c in cuts]).astype(np.uint32)
        steps = np.array([layer.steps for layer in self.layers])
        self.active = len(self.owner) - np.bincount(steps.repeat(lanes)).cumsum()[:-1]
        self.symbols = np.zeros((steps.max(), len(self.owner)), dtype=np.uint16)

    def columns(self, i: int) -> Array:
        """The symbols (steps, lanes) of a layer."""
        layer = self.layers[i]
        return self.symbols[: layer.steps, self.ends[i] - layer.lanes : self.ends[i]]


def encode(layers: Sequence[StaticLayer], codes: Sequence[Array]) -> list[bytes]:
    """The bytes of each layer's flat codes: its states, then its words."""
    if not layers:
        return []
    lanes = _Lanes(layers)
    for i, place in enumerate(lanes.order):
        lanes.columns(i)[:] = layers[place].symbols(codes[place])
    states = np.full(len(lanes.owner), LOWEST, dtype=np.uint32)
    words, owners = [np.zeros(0, np.uint16)], [np.zeros(0, np.intp)]
    for symbols, active in zip(lanes.symbols[::-1], lanes.active[::-1].tolist(), strict=True):
        x, at = states[:active], lanes.table[:active] + symbols[:active]
        frequency = lanes.frequency.take(at)
        (full,) = (x >> 16 >= frequency).nonzero()
        word = x.take(full)
        words.append(word.astype(np.uint16))
        owners.append(lanes.owner.take(full))
        x[full] = word >> 16
        quotient, rest = np.divmod(x, frequency)
        x[:] = (quotient << 16) + rest + lanes.start.take(at)
    owner, word = (np.concatenate(parts[::-1]) for parts in (owners, words))
    order = np.argsort(owner.astype(np.uint16), kind="stable")
    ends = np.bincount(owner, minlength=len(layers)).cumsum()
    streams = zip(np.split(states, lanes.ends[:-1]), np.split(word[order], ends[:-1]), strict=True)
    result = [b""] * len(layers)
    for place, (state, part) in zip(lanes.order, streams, strict=True):
        result[place] = state.astype("<u4").tobytes() + part.astype("<u2").tobytes()
    return result


def _run(lanes: _Lanes, states: Array, words: Array, ends: Array) -> None:
    """Decode all symbols. words: of all layers, one after the other; ends: of each layer's."""
    # where each frequency belongs: symbols of the 65536 slots of each layer
    slots = np.concatenate([np.arange(len(n.cuts) - 1, dtype=np.uint16).repeat(np.diff(n.cuts))
                            for n in lanes.layers])  # fmt: skip
    first, following = lanes.owner * ONE, np.concatenate([[0], ends[:-1]])
    for step, active in enumerate(lanes.active.tolist()):
        x = states[:active]
        slot = x & np.uint32(MASK)
        symbol = slots.take(slot + first[:active])
        lanes.symbols[step, :active] = symbol
        at = lanes.table[:active] + symbol
        x >>= 16
        x *= lanes.frequency.take(at)
        x += slot - lanes.start.take(at)
        (empty,) = (x < LOWEST).nonzero()
        owner = lanes.owner.take(empty)
        taken = np.bincount(owner, minlength=len(ends))
        # the next words of each layer, in the order of its lanes
        place = (following + taken - taken.cumsum()).take(owner) + np.arange(len(empty))
        following += taken
        x[empty] = x.take(empty) << 16 | words.take(place, mode="clip")
    if (following != ends).any() or (states != LOWEST).any():
        raise CheckpointError("the entropy-coded part is damaged")


def decode(layers: Sequence[StaticLayer], parts: Sequence[bytes]) -> list[Array]:
    """The flat codes of each layer. Raises CheckpointError if the bytes are damaged, and before it
    takes memory for more than LANE / 2 weights a byte."""
    if not layers:
        return []
    if len(layers) > TOGETHER:
        halves = slice(len(layers) // 2), slice(len(layers) // 2, None)
        return [codes for half in halves for codes in decode(layers[half], parts[half])]
    if any(len(p) < 4 * n.lanes or len(p) % 2 for n, p in zip(layers, parts, strict=True)):
        raise CheckpointError("the entropy-coded part has an impossible length")
    lanes = _Lanes(layers)
    ordered = [(layers[place], parts[place]) for place in lanes.order]
    states = [np.frombuffer(part, "<u4", layer.lanes) for layer, part in ordered]
    words = [np.frombuffer(part, "<u2", offset=4 * layer.lanes) for layer, part in ordered]
    ends = np.cumsum([len(w) for w in words])
    words = np.concatenate([*words, np.zeros(1, "<u2")]).astype(np.uint32)
    _run(lanes, np.concatenate(states).astype(np.uint32), words, ends)
    found = {place: lanes.columns(i) for i, place in enumerate(lanes.order)}
    return [layer.codes(found[place]) for place, layer in enumerate(layers)]
