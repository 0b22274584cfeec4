"""The context model: the probabilities that a layer's codes are entropy-coded with.

Codes are -h ... h, the rank of a weight's value. A layer is read channel by channel and, within
one, tap by tap; its lanes (filters, or inputs if these are more) are coded together, and so are the
lanes of several layers of the same shape. Each code is a few binary decisions: zero or not, its
sign, larger or not. Whether a weight is zero is predicted from the densities of its lane, channel
and tap and from the kernel it is in (the weights around it that are known already); signs likewise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_scoring.packed_file.adaptive_mixing import ContextCounts, ContextModel, LaneCounts, Mixer
from model_scoring.packed_file.fixed_point import ONE, UNIT
from model_scoring.packed_file.rans_coder import Decoder, Encoder

Array = np.ndarray
MOST_LANES = 1024  # coded at once; keeps counts within the logarithm's table
FIRST_TAPS = 9  # have statistics of their own; those of later ones are shared
PRIOR_UNIT = UNIT // 8  # what a layer's recorded densities are multiples of


def densities(codes: Array) -> list[int]:
    """Shares of nonzero codes among all and of positive ones among these, as a file records them:
    their stretches in units of 1/8, -96 ... 96."""
    nonzero, positive = np.count_nonzero(codes), np.count_nonzero(codes > 0)
    shares = (nonzero / max(codes.size, 1), positive / max(nonzero, 1))
    bounded = (min(max(share, 2**-12), 1 - 2**-12) for share in shares)
    return [round(8 * math.log2(share / (1 - share))) for share in bounded]


@dataclass(frozen=True)
class Geometry:
    """The shape in which layers are coded. Those of the same one can be coded together."""

    lanes: int
    channels: int
    taps: int
    width: int  # taps in a row of the kernel
    levels: int  # largest code

    @property
    def states(self) -> int:
        """Coders of a layer. Each costs 4 bytes, too few of them time."""
        weights = self.lanes * self.channels * self.taps
        share = 16384 if weights < 100_000 else 8192  # of one coder
        return max(1, min(weights // share, self.lanes))

    def blocks(self) -> list[slice]:
        """Lanes coded at once. Without other taps only earlier lanes tell a channel's density."""
        parts = max(1, min(4, self.lanes // 128)) if self.taps == 1 else 1
        size = min(-(-self.lanes // parts), MOST_LANES)
        return [slice(i, min(i + size, self.lanes)) for i in range(0, self.lanes, size)]


class Kernel:
    """The codes of one channel's kernels that are known already, seen from a tap."""

    def __init__(self, codes: Array, shape: Geometry) -> None:
        self.codes, self.shape = codes, shape  # (taps, layers, lanes)
        self.signs = np.zeros_like(codes)
        self.outside = np.zeros_like(codes[0])
        self.nonzeros = np.zeros(codes.shape[1:], dtype=np.int16)
        self.balance = np.zeros(codes.shape[1:], dtype=np.int16)

    def move(self, tap: int, block: slice) -> None:
        self.tap, self.block = tap, block
        self.row, self.column = divmod(tap, self.shape.width)

    def at(self, planes: Array, up: int, left: int) -> Array:
        """The tap so far up and to the left, 0 outside the kernel, of codes or of signs."""
        row, column = self.row - up, self.column - left
        inside = row >= 0 and 0 <= column < self.shape.width
        plane = planes[row * self.shape.width + column] if inside else self.outside
        return plane[:, self.block]

    def sign(self, up: int, left: int) -> Array:
        return self.at(self.signs, up, left)

    def put(self, codes: Array) -> None:
        """The codes of the current tap and block."""
        signs = np.sign(codes)
        self.codes[self.tap][:, self.block] = codes
        self.signs[self.tap][:, self.block] = signs
        self.nonzeros[:, self.block] += signs != 0
        self.balance[:, self.block] += signs


class ZeroModel(ContextModel):
    """Whether weights are nonzero."""

    def __init__(self, prior: Array, informed: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 6, shape.lanes)
        self.channel = ContextCounts(prior, 4)
        self.tap = ContextCounts(prior, 60, classes=shape.taps)
        self.near = ContextCounts(prior, 8, size=48, classes=6)
        self.kernel = ContextCounts(prior, 8, size=10, classes=FIRST_TAPS + 1)
        weights = (0.6, 0.6, 0.0, 0.45, 0.2, 0.25, 0.2, -0.1, -0.1, 0.1)
        mixer = Mixer(prior, informed, weights, shape.lanes)
        super().__init__(mixer, self.lane, self.channel, self.tap, self.near, self.kernel)

    def probability(self, kernel: Kernel) -> Array:
        left, above = kernel.sign(0, 1), kernel.sign(1, 0)
        around = [plane & 1 for plane in (left, above, kernel.sign(1, 1), kernel.sign(1, -1))]
        same = np.abs(left + above)
        place = 0 if kernel.column == 0 else 1 + (kernel.column == kernel.shape.width - 1)
        # 48 contexts: which of four neighbours are nonzero, and 0 to 2 for the signs of two
        near = sum((known << i for i, known in enumerate(around)), same << 4)
        count = kernel.nonzeros[:, kernel.block].clip(0, 9)
        stretches = (
            self.lane.predict(kernel.block),
            self.channel.predict(),
            self.tap.predict(kernel.tap),
            self.near.predict(3 * (kernel.row > 0) + place, near),
            self.kernel.predict(min(kernel.tap, FIRST_TAPS), count),
        )
        return self.mix(stretches, (*around, same))


class SignModel(ContextModel):
    """Whether nonzero weights are positive."""

    def __init__(self, prior: Array, informed: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 6, shape.lanes)
        self.channel = ContextCounts(prior, 4)
        self.near = ContextCounts(prior, 4, size=27, classes=4)
        self.kernel = ContextCounts(prior, 4, size=81)
        weights = (0.15, 0.15, 0.7, 0.05, 0.7, 0.7, 0.15, -0.2, -0.3, -0.1)
        mixer = Mixer(prior, informed, weights, shape.lanes)
        super().__init__(mixer, self.lane, self.channel, self.near, self.kernel)

    def probability(self, kernel: Kernel) -> Array:
        left, above = kernel.sign(0, 1), kernel.sign(1, 0)
        left2, above2 = kernel.sign(0, 2), kernel.sign(2, 0)
        diagonal = np.sign(kernel.sign(1, 1) + kernel.sign(1, -1))
        balance = kernel.balance[:, kernel.block].clip(-4, 4).astype(np.int8)
        # digits of base 3 (27 contexts), and 9 balances by 3 by 3 (81)
        near = left + 3 * above + 9 * diagonal + 13
        far = balance + 9 * np.sign(left2 + above2) + 27 * np.sign(left + above) + 40
        stretches = (
            self.lane.predict(kernel.block),
            self.channel.predict(),
            self.near.predict(2 * (kernel.row > 0) + (kernel.column > 0), near),
            self.kernel.predict(0, far),
        )
        signals = (left, above, diagonal, left2, above2, balance.clip(-2, 2))
        return self.mix(stretches, signals)


class LevelModel(ContextModel):
    """Whether a weight of magnitude at least m has a larger one; for more than three values."""

    def __init__(self, prior: Array, informed: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 6, shape.lanes)
        self.near = ContextCounts(prior, 4, size=2 * 8, classes=shape.levels)
        mixer = Mixer(prior, informed, (0.5, 1.0), shape.lanes)
        super().__init__(mixer, self.lane, self.near)

    def probability(self, kernel: Kernel, m: int, positive: Array) -> Array:
        left, above = kernel.at(kernel.codes, 0, 1), kernel.at(kernel.codes, 1, 0)
        near = np.maximum(np.abs(left), np.abs(above)).clip(0, 7) + 8 * positive
        return self.mix((self.lane.predict(kernel.block), self.near.predict(m - 1, near)))


class LayerModels:
    """Codes or decodes the layers of one geometry, whichever coder it is given."""

    def __init__(self, shape: Geometry, priors: Array, coder: Encoder | Decoder) -> None:
        """priors: (layers, 3) int8: both `densities`, and 1 if weights tell of others, 0 if they
        are independent."""
        self.shape, self.coder = shape, coder
        nonzero, positive, informed = priors.T.astype(np.int32)[:, :, None]
        self.zero = ZeroModel(nonzero * PRIOR_UNIT, informed, shape)
        self.sign = SignModel(positive * PRIOR_UNIT, informed, shape)
        self.level = LevelModel(np.zeros_like(nonzero), informed, shape)

    def run(self, codes: Array) -> None:
        """codes: int8 (channels, taps, layers, lanes); a decoder fills them in."""
        encoding = isinstance(self.coder, Encoder)
        for channel in codes:
            kernel = Kernel(channel, self.shape)
            self.zero.channel.reset()
            self.sign.channel.reset()
            for tap in range(self.shape.taps):
                for block in self.shape.blocks():
                    kernel.move(tap, block)
                    known = channel[tap][:, block] if encoding else None
                    kernel.put(self._step(kernel, known))
            for model in (self.zero, self.sign, self.level):
                model.lane.forget()

    def _step(self, kernel: Kernel, known: Array | None) -> Array:
        """Codes (layers, lanes) of one tap; `known` when they are to be coded."""
        nonzero, positive = self.zero.probability(kernel), self.sign.probability(kernel)
        # every interval has a width of at least 1, whatever the sign's probability
        negative_end = ONE - 1 - ((nonzero - 2).astype(np.int64) * positive >> 16)
        symbol = None if known is None else (known != 0).astype(np.int8) + (known > 0)
        symbol = self.coder.code([ONE - nonzero, negative_end], symbol)  # zero, negative, positive
        found, up = (symbol > 0).astype(np.int32), (symbol > 1).astype(np.int32)
        self.zero.update(found)
        self.sign.update(up, found)
        size, active = found.copy(), found  # magnitudes: 1 + the number of times it is larger
        for m in range(1, self.shape.levels):
            larger = self.level.probability(kernel, m, up)
            cut = np.where(active, ONE - larger, ONE)  # nothing to say of the others
            more = None if known is None else (np.abs(known) > m).astype(np.int8)
            more = self.coder.code([cut], more).astype(np.int32)
            self.level.update(more, active)
            size += more
            active = more
        return np.where(up, size, -size).astype(np.int8)


def encode(codes: Array, shape: Geometry, priors: Array) -> list[bytes]:
    """The bytes of each layer of int8 codes (channels, taps, layers, lanes)."""
    coder = Encoder(codes.shape[2], shape.states)
    LayerModels(shape, priors, coder).run(codes)
    return coder.finish()


def decode(parts: Sequence[bytes], shape: Geometry, priors: Array) -> Array:
    """The codes that `encode` was given. Raises CheckpointError if the bytes are damaged."""
    coder = Decoder(parts, shape.states)
    codes = np.zeros((shape.channels, shape.taps, len(parts), shape.lanes), dtype=np.int8)
    # the models learn from the codes they decode, as the encoder's did from those it coded
    LayerModels(shape, priors, coder).run(codes)
    coder.finish()
    return codes
