"""What a layer's weights tell about the next one: the probabilities its codes are stored with.

Codes are -h ... h, the rank of a weight's value. A layer is read channel by channel and, within one,
tap by tap; its lanes (filters, or inputs if these are more) are coded together, and so are the
lanes of several layers of the same shape. Whether a weight is zero is predicted from the densities
of its lane, channel and tap and from the kernel it is in; signs likewise.
"""

import math
from dataclasses import dataclass

import numpy as np

from model_scoring.coder import Decoder, Encoder
from model_scoring.fixed_point import ONE, UNIT
from model_scoring.mixing import ContextCounts, LaneCounts, Model, Question

Array = np.ndarray
MOST_LANES = 1024  # coded at once; keeps counts within the logarithm's table
FIRST_TAPS = 9  # have statistics of their own; those of later ones are shared
PRIOR_UNIT = UNIT // 8  # what a layer's recorded densities are multiples of


def prior_of(share: float) -> int:
    """A share of ones as a file records it: its stretch in units of 1/8, -96 ... 96."""
    share = min(max(share, 2**-12), 1 - 2**-12)
    return round(8 * math.log2(share / (1 - share)))


@dataclass(frozen=True)
class Geometry:
    """The shape in which layers are coded. Those of the same one can be coded together."""

    lanes: int
    channels: int
    height: int
    width: int
    levels: int  # largest code

    @property
    def taps(self) -> int:
        return self.height * self.width

    @property
    def weights(self) -> int:
        return self.lanes * self.channels * self.taps

    @property
    def states(self) -> int:
        """Coders of a layer. Each costs about 3 bytes, too few of them time."""
        return max(1, min(self.weights // 16384, self.lanes))

    def blocks(self) -> list[slice]:
        """Lanes coded at once. Without other taps only earlier lanes tell a channel's density."""
        parts = 4 if self.taps == 1 and self.lanes >= 64 else 1
        size = min(-(-self.lanes // parts), MOST_LANES)
        return [slice(i, min(i + size, self.lanes)) for i in range(0, self.lanes, size)]


class Kernel:
    """The codes of one channel's kernels that are known already, seen from a tap."""

    def __init__(self, codes: Array, geometry: Geometry) -> None:
        self.codes = codes  # (taps, layers, lanes)
        self.height, self.width = geometry.height, geometry.width
        self.outside = np.zeros_like(codes[0])
        self.nonzeros = np.zeros(codes.shape[1:], dtype=np.int16)
        self.balance = np.zeros(codes.shape[1:], dtype=np.int16)

    def move(self, tap: int) -> None:
        self.tap, (self.row, self.column) = tap, divmod(tap, self.width)

    def at(self, up: int, left: int, block: slice) -> Array:
        """Codes of the tap so far up and to the left, 0 outside the kernel."""
        row, column = self.row - up, self.column - left
        if row < 0 or not 0 <= column < self.width:
            return self.outside[:, block]
        return self.codes[row * self.width + column][:, block]

    def learn(self) -> None:
        """Add up what the tap has shown."""
        self.nonzeros += self.codes[self.tap] != 0
        self.balance += np.sign(self.codes[self.tap])


class ZeroModel(Model):
    """Whether weights are nonzero."""

    def __init__(self, prior: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 8, shape.lanes)
        self.channel = ContextCounts(prior, 8)
        self.tap = ContextCounts(prior, 60, classes=shape.taps)
        self.near = ContextCounts(prior, 8, size=16, classes=6)
        self.kernel = ContextCounts(prior, 8, size=10, classes=FIRST_TAPS + 1)
        super().__init__(
            Question(prior, (0.6, 0.6, 0.1, 0.4, 0.1, 0.1, 0.1, 0.0, 0.0), shape.lanes),
            (self.lane, self.channel, self.tap, self.near, self.kernel),
        )

    def probability(self, kernel: Kernel, block: slice) -> Array:
        place = 0 if kernel.column == 0 else 1 + (kernel.column == kernel.width - 1)
        around = [(kernel.at(*offset, block) != 0).view(np.int8) for offset in ((0, 1), (1, 0), (1, 1), (1, -1))]
        near = sum(known << i for i, known in enumerate(around))
        stretches = (
            self.lane.look(block),
            self.channel.look(),
            self.tap.look(kernel.tap),
            self.near.look(3 * (kernel.row > 0) + place, near),
            self.kernel.look(min(kernel.tap, FIRST_TAPS), kernel.nonzeros[:, block].clip(0, 9)),
        )
        return self.question.probability(stretches, around)


class SignModel(Model):
    """Whether nonzero weights are positive."""

    def __init__(self, prior: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 8, shape.lanes)
        self.channel = ContextCounts(prior, 8)
        self.near = ContextCounts(prior, 4, size=27, classes=4)
        self.kernel = ContextCounts(prior, 4, size=81)
        super().__init__(
            Question(prior, (0.3, 0.3, 0.6, 0.1, 0.5, 0.5, 0.2, -0.2, -0.2, 0.0), shape.lanes),
            (self.lane, self.channel, self.near, self.kernel),
        )

    def probability(self, kernel: Kernel, block: slice) -> Array:
        def sign(up: int, left: int) -> Array:
            return np.sign(kernel.at(up, left, block))

        left, above, left2, above2 = sign(0, 1), sign(1, 0), sign(0, 2), sign(2, 0)
        diagonal = np.sign(sign(1, 1) + sign(1, -1))
        near = left + 3 * above + 9 * diagonal + 13
        balance = kernel.balance[:, block].clip(-4, 4).astype(np.int8)
        far = balance + 9 * left2 + 27 * above2 + 40
        stretches = (
            self.lane.look(block),
            self.channel.look(),
            self.near.look(2 * (kernel.row > 0) + (kernel.column > 0), near),
            self.kernel.look(0, far),
        )
        direct = (left, above, diagonal, left2, above2, balance.clip(-2, 2))
        return self.question.probability(stretches, direct)


class LevelModel(Model):
    """Whether a weight of magnitude at least m has a larger one; for more than three values."""

    def __init__(self, prior: Array, shape: Geometry) -> None:
        self.lane = LaneCounts(prior, 8, shape.lanes)
        self.near = ContextCounts(prior, 4, size=2 * 8, classes=shape.levels)
        super().__init__(Question(prior, (0.5, 1.0), shape.lanes), (self.lane, self.near))

    def probability(self, kernel: Kernel, block: slice, m: int, positive: Array) -> Array:
        sides = [abs(kernel.at(*offset, block)) for offset in ((0, 1), (1, 0))]
        near = np.maximum(*sides).clip(0, 7) + 8 * positive
        return self.question.probability((self.lane.look(block), self.near.look(m - 1, near)))


class LayerModels:
    """Codes or decodes the layers of one geometry, whichever coder it is given."""

    def __init__(self, shape: Geometry, priors: Array, coder: Encoder | Decoder) -> None:
        """priors: (layers, 2) int8, `prior_of` the shares of nonzero and of positive weights."""
        self.shape, self.coder = shape, coder
        nonzero, positive = priors.T.astype(np.int32)[:, :, None] * PRIOR_UNIT
        self.zero, self.sign = ZeroModel(nonzero, shape), SignModel(positive, shape)
        self.level = LevelModel(np.zeros_like(nonzero), shape) if shape.levels > 1 else None

    def run(self, codes: Array) -> Array:
        """codes: int8 (channels, taps, layers, lanes); a decoder fills them in."""
        encoding = isinstance(self.coder, Encoder)
        for channel in codes:
            kernel = Kernel(channel, self.shape)
            self.zero.channel.reset()
            self.sign.channel.reset()
            for tap in range(self.shape.taps):
                kernel.move(tap)
                for block in self.shape.blocks():
                    known = channel[tap][:, block] if encoding else None
                    channel[tap][:, block] = self._step(kernel, block, known)
                kernel.learn()
            for model in (self.zero, self.sign, self.level):
                if model:
                    model.forget()
        return codes

    def _step(self, kernel: Kernel, block: slice, known: Array | None) -> Array:
        """Codes (layers, lanes) of one tap; `known` when they are to be coded."""
        nonzero = self.zero.probability(kernel, block)
        positive = self.sign.probability(kernel, block)
        zero_ends = ONE - nonzero
        # every interval has a width of at least 1, whatever the sign's probability
        cuts = [zero_ends, ONE - 1 - ((nonzero - 2).astype(np.int64) * positive >> 16)]
        symbol = None if known is None else (known != 0).astype(np.int8) + (known > 0)
        symbol = self.coder.code(cuts, symbol)  # 0, 1 or 2 for zero, negative and positive
        found, up = (symbol > 0).astype(np.int32), (symbol > 1).astype(np.int32)
        self.zero.learn(found)
        self.sign.learn(up, found)
        size = found if self.level is None else self._sizes(kernel, block, known, found, up)
        return np.where(up, size, -size)

    def _sizes(self, kernel: Kernel, block: slice, known: Array | None, found, up) -> Array:
        """Magnitudes: 1 + the number of times the answer is yes."""
        size, active = found.copy(), found
        for m in range(1, self.shape.levels):
            larger = self.level.probability(kernel, block, m, up)
            cut = np.where(active, ONE - larger, ONE)  # nothing to say of the others
            more = None if known is None else (abs(known) > m).astype(np.int8)
            more = self.coder.code([cut], more).astype(np.int32)
            self.level.learn(more, active)
            size += more
            active = more
        return size


def encode(codes: Array, shape: Geometry, priors: Array) -> list[bytes]:
    """The bytes of each layer of int8 codes (channels, taps, layers, lanes)."""
    coder = Encoder(codes.shape[2], shape.states)
    LayerModels(shape, priors, coder).run(codes)
    return coder.finish()


def decode(parts: list[bytes], shape: Geometry, priors: Array) -> Array:
    """The codes that `encode` was given. Raises CheckpointError if the bytes are damaged."""
    coder = Decoder(parts, shape.states)
    codes = np.zeros((shape.channels, shape.taps, len(parts), shape.lanes), dtype=np.int8)
    LayerModels(shape, priors, coder).run(codes)
    coder.finish()
    return codes
