"""Interleaved rANS (range asymmetric numeral systems; Duda 2013, arXiv 1311.2540).

An entropy coder: as arithmetic coding, it spends -log2 p bits on a symbol of probability p. Several
layers of the same shape are coded side by side, each into bytes of its own. A layer has `states`
coders that take turns: the lanes of a step go to them in order, round by round. States have 32
bits, words 16, and probabilities are cuts of 0 ... 65536. Coding runs backwards, so that decoding
runs forwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_scoring.packed_file.fixed_point import ONE

LOWEST = 1 << 16  # a state's smallest value, and its first one
MASK = ONE - 1


def rounds(lanes: int, states: int) -> list[slice]:
    """The lanes of a step that are coded at once."""
    return [slice(i, min(i + states, lanes)) for i in range(0, lanes, states)]


@dataclass
class Encoder:
    """Notes down the symbols of `layers` layers; `finish` codes them."""

    layers: int
    states: int
    steps: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def code(self, cuts: list[np.ndarray], symbol: np.ndarray) -> np.ndarray:
        """Take symbols (layers, lanes) whose intervals are bounded by rising cuts (same shape)."""
        start, end = np.zeros_like(cuts[0]), np.full_like(cuts[0], ONE)
        for i, cut in enumerate(cuts):
            np.copyto(start, cut, where=symbol > i)
        for i, cut in reversed(list(enumerate(cuts))):
            np.copyto(end, cut, where=symbol <= i)
        # an interval's width is at least 1 and at most 65536, so both fit 16 bits
        self.steps.append((start.astype(np.uint16), (end - start - 1).astype(np.uint16)))
        return symbol

    def finish(self) -> list[bytes]:
        """The bytes of each layer: its states, then its words."""
        x = np.full((self.layers, self.states), LOWEST, dtype=np.uint32)
        owners, words = [], []
        for start, width in reversed(self.steps):
            for lanes in reversed(rounds(start.shape[1], self.states)):
                owner, word = _push(x, start[:, lanes], width[:, lanes])
                owners.append(owner)
                words.append(word)
        owner, word = (np.concatenate(parts[::-1]) for parts in (owners, words))
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=self.layers))
        parts = np.split(word[order].astype("<u2"), ends[:-1])
        return [s.astype("<u4").tobytes() + p.tobytes() for s, p in zip(x, parts, strict=True)]


def _push(x: np.ndarray, start: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code one symbol per state in place; layer and value of the words this gives off."""
    states = start.shape[1]
    turn = x[:, :states].copy()  # 32 bits suffice, and are divided faster than 64
    frequency = width.astype(np.uint32) + np.uint32(1)
    (full,) = (turn >> 16 >= frequency).reshape(-1).nonzero()
    word = turn.take(full)
    turn.reshape(-1)[full] = word >> 16
    quotient, rest = np.divmod(turn, frequency)
    x[:, :states] = (quotient << 16) + rest + start
    return full // states, word & np.uint32(MASK)


class Decoder:
    """Reads the symbols again, given the same cuts. Damaged bytes give wrong symbols and, at the
    latest in `finish`, an error."""

    def __init__(self, parts: Sequence[bytes], states: int) -> None:
        if any(len(part) < 4 * states or len(part) % 2 for part in parts):
            raise CheckpointError("the entropy-coded part has an impossible length")
        heads = [np.frombuffer(part, "<u4", states) for part in parts]
        words = [np.frombuffer(part, "<u2", offset=4 * states) for part in parts]
        self.states, self.x = states, np.stack(heads).astype(np.int64)
        self.words = np.concatenate([*words, np.zeros(1, "<u2")]).astype(np.int64)
        self.ends = np.cumsum([len(w) for w in words])
        self.next = self.ends - [len(w) for w in words]

    def code(self, cuts: list[np.ndarray], symbol: None = None) -> np.ndarray:
        """The next symbols (layers, lanes)."""
        symbols = np.empty(cuts[0].shape, dtype=np.int8)
        for lanes in rounds(cuts[0].shape[1], self.states):
            self._pull([cut[:, lanes] for cut in cuts], symbols[:, lanes])
        return symbols

    def _pull(self, cuts: list[np.ndarray], symbol: np.ndarray) -> None:
        """One symbol per state: the number of the interval, between two cuts, that it is in."""
        states = symbol.shape[1]
        turn = self.x[:, :states]
        slot = turn & MASK
        above = [slot >= cut for cut in cuts]
        start, end = above[0] * cuts[0], ONE
        for is_above, cut in zip(above[1:], cuts[1:], strict=True):
            start = np.where(is_above, cut, start)
        for is_above, cut in zip(above[::-1], cuts[::-1], strict=True):
            end = np.where(is_above, end, cut)
        symbol[:] = above[0]
        for is_above in above[1:]:
            symbol += is_above
        turn = (turn >> 16) * (end - start) + slot - start
        low = turn < LOWEST
        taken = low.cumsum(1)
        word = self.words.take(taken + (self.next - 1)[:, None], mode="clip")
        self.x[:, :states] = np.where(low, turn << 16 | word, turn)
        self.next += taken[:, -1]

    def finish(self) -> None:
        """Raise CheckpointError unless everything was read and led back to where coding began."""
        if (self.next != self.ends).any() or (self.x != LOWEST).any():
            raise CheckpointError("the entropy-coded part is damaged")
