"""What a network is made of in C: steps that read and write planes of pixels.

A value is one plane a channel, wherever it lies: concatenation, splits and shuffles of channels
only rearrange numbers of planes and cost nothing.
"""

from dataclasses import dataclass, field

import numpy as np

Size = tuple[int, int]  # height, width
PIXEL: Size = (1, 1)


@dataclass(frozen=True, eq=False)
class Value:
    """An activation (..., height, width): `planes` has the number of each plane, in the shape of
    the dimensions before. One of two dimensions has planes of one pixel."""

    planes: np.ndarray  # int64
    size: Size


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
    also: "Map | None" = None  # stores scale y + shift, activated, as well

    def reads(self) -> list[Value]:
        return [*super().reads(), *(part.value for part in self.parts)]

    def writes(self) -> list[Value]:
        return [self.out, self.also.out] if self.also else [self.out]


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


@dataclass
class Program:
    """Steps in their order, and the sizes of all planes: those of the image come first."""

    image: Value
    steps: list[Step] = field(default_factory=list)
    buffers: list[tuple[int, int, Size]] = field(default_factory=list)  # first plane, count, size
    logits: Value | None = None

    def new(self, shape: tuple[int, ...], size: Size) -> Value:
        """A value of fresh planes that lie side by side."""
        first = sum(self.buffers[-1][:2]) if self.buffers else self.image.planes.size
        planes = first + np.arange(int(np.prod(shape)), dtype=np.int64)
        self.buffers.append((first, len(planes), size))
        return Value(planes.reshape(shape), size)
