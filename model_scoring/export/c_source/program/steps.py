"""What a network is made of in C: steps that read and write planes of pixels.

A value is one plane a channel, wherever it lies: concatenation, splits and shuffles of channels
only rearrange numbers of planes and cost nothing.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from model_compound_scaling.networks.few_values import few_values, without_subnormals

Size = tuple[int, int]  # height, width
PIXEL: Size = (1, 1)
MOST_INPUTS = 2**16  # that the entries of a list can tell apart


@dataclass(frozen=True)
class Codes:
    """What a quantizer makes: whole numbers from low to high, times a step. A byte holds a code
    plus an offset; even ones leave ties of rounding as they are."""

    step: float
    low: int
    high: int

    @property
    def offset(self) -> int:
        return -self.low + self.low % 2

    @property
    def largest(self) -> int:
        """Byte."""
        return self.high + self.offset

    @property
    def most_terms(self) -> int:
        """Bytes whose sum fits into 16 bits, whatever they are."""
        return (2**16 - 1) // self.largest


@dataclass(frozen=True, eq=False)
class Value:
    """An activation (..., height, width): `planes` has the number of each plane, in the shape of
    the dimensions before. One of two dimensions has planes of one pixel. With `codes` the planes
    are bytes, else floats."""

    planes: np.ndarray  # int64
    size: Size
    codes: Codes | None = None


@dataclass(frozen=True)
class Activation:
    """A function of one number; the kinds are those of templates/vectors.c."""

    kind: str = "IDENTITY"
    low: float = 0.0
    high: float = 0.0


IDENTITY = Activation()


@dataclass(eq=False, kw_only=True)
class Step:
    """One kernel's work. `out` are planes of its own, in their order."""

    out: Value

    def reads(self) -> list[Value]:
        """What has to be there before."""
        return [v for v in vars(self).values() if isinstance(v, Value) and v is not self.out]

    def writes(self) -> list[Value]:
        """What is there afterwards."""
        return [self.out]


@dataclass(eq=False, kw_only=True)
class Affine(Step):
    """A step that takes scale, shift, another value and an activation, in this order, if nothing
    else reads what it makes before."""

    scale: np.ndarray  # (channels,) float64
    shift: np.ndarray
    add: Value | None = None
    activation: Activation = IDENTITY

    @property
    def plain(self) -> bool:
        """Whether neither a sum nor an activation is in the way of another factor."""
        return self.add is None and self.activation == IDENTITY

    def affine(self, scale: np.ndarray | float, shift: np.ndarray | float) -> None:
        """x -> scale x + shift of what it makes."""
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift


@dataclass
class Tap:
    """A place of a filter: which of the parts it reads, and how far from the output's pixel."""

    index: int  # in the flattened kernel
    y: int
    x: int


@dataclass(eq=False)
class Part:
    """An input of a convolution, or with stride one of its phases, and the taps that read it."""

    value: Value
    taps: list[Tap]


@dataclass(eq=False, kw_only=True)
class Convolution(Affine):
    """weight: (filters, channels of a group, taps), float32."""

    parts: list[Part]
    weight: np.ndarray
    groups: int
    also: list["Map"] = field(default_factory=list)  # store scale y + shift, activated, as well
    stored: bool = True  # whether anything reads y itself

    @property
    def chunks(self) -> int:
        """Parts of a filter's lists at most, none of whose sums of bytes can overflow."""
        most, rows = self.parts[0].value.codes.most_terms, self.weight.reshape(len(self.weight), -1)
        values = listed_values(self.weight, self.groups)
        return int(sum(-(-(rows == v).sum(1) // most) for v in values).max()) if len(values) else 0

    def reads(self) -> list[Value]:
        return [*super().reads(), *(part.value for part in self.parts)]

    def writes(self) -> list[Value]:
        return [self.out] * self.stored + [step.out for step in self.also]


@dataclass(eq=False, kw_only=True)
class Linear(Affine):
    """weight: (outputs, inputs), float32."""

    x: Value
    weight: np.ndarray


@dataclass(eq=False, kw_only=True)
class Map(Affine):
    """Pixel by pixel; `add` is the other operand of `operation`."""

    x: Value
    operation: str = "SUM"


@dataclass(frozen=True)
class Window:
    """Pooling along one dimension."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(eq=False, kw_only=True)
class Pool(Step):
    """Maxima or averages of windows; divisor 0: of the number of pixels."""

    x: Value
    windows: tuple[Window, Window]
    maximum: bool
    adaptive: bool = False
    with_padding: bool = True
    divisor: float = 0.0


@dataclass(eq=False, kw_only=True)
class Mean(Step):
    """Of whole planes."""

    x: Value


@dataclass(eq=False, kw_only=True)
class Sample(Step):
    """Every step-th pixel from some place on; what is outside of the input is a number."""

    x: Value
    step: Size
    start: Size
    outside: float = 0.0


@dataclass(eq=False, kw_only=True)
class Flatten(Step):
    """Every pixel to a plane of its own."""

    x: Value


@dataclass(eq=False, kw_only=True)
class Dequantize(Step):
    """Codes to floats."""

    x: Value


@dataclass(frozen=True)
class Buffer:
    """Planes that lie side by side."""

    first: int  # plane
    count: int
    size: Size
    codes: Codes | None = None


@dataclass
class Program:
    """Steps in their order, and the sizes of all planes: those of the image come first."""

    image: Value
    steps: list[Step] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    logits: Value | None = None

    def new(self, shape: tuple[int, ...], size: Size, codes: Codes | None = None) -> Value:
        """A value of fresh planes."""
        last = self.buffers[-1] if self.buffers else Buffer(0, self.image.planes.size, size)
        first, count = last.first + last.count, int(np.prod(shape))
        planes = first + np.arange(count, dtype=np.int64)
        self.buffers.append(Buffer(first, count, size, codes))
        return Value(planes.reshape(shape), size, codes)

    def buffers_of(self, value: Value) -> list[int]:
        """Numbers of the buffers that a value lies in; the image is in none."""
        firsts = np.array([buffer.first for buffer in self.buffers])
        planes = np.unique(value.planes)
        planes = planes[planes >= firsts[0]]
        return np.unique(np.searchsorted(firsts, planes, "right") - 1).tolist()


def listed_values(weight: np.ndarray, groups: int = 1) -> np.ndarray | None:
    """The values of a layer's lists, the smallest first; None: it has too many, or a list would be
    longer than its 16-bit length can say."""
    found = few_values(torch.from_numpy(np.ascontiguousarray(weight)))
    rows = weight.reshape(len(weight), -1)
    too_long = rows.shape[1] == MOST_INPUTS and (rows == rows[:, :1]).all(1) & (rows[:, 0] != 0)
    if found is None or weight[0].size * groups > MOST_INPUTS or np.any(too_long):
        return None
    values = without_subnormals(found).numpy()
    values = values[values != 0]
    return values[np.argsort(abs(values), kind="stable")]
