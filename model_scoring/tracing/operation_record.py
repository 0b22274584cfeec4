"""What a forward pass leaves behind: records of its operations, and tags on its tensors."""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_scoring.tracing.aten_operations import UNKNOWN
from model_scoring.tracing.channel_labels import Channels, Labels, Shape
from model_scoring.tracing.layer_weights import Weights, code_bits

if TYPE_CHECKING:
    from model_scoring.tracing.channel_rules import Call


@dataclass(frozen=True)
class Numbers:
    """What is known of an activation's numbers, whatever the image: bounds, and a step of which
    they are multiples; None: there is none."""

    low: float = -math.inf
    high: float = math.inf
    step: float | None = None
    widest: int | None = None  # bits of the widest of several parts that have steps of their own

    @property
    def bits(self) -> int | None:
        """Of whole numbers that stand for them; 0 is one, which padding adds."""
        if self.step is None:
            return self.widest
        return code_bits((max(self.high, 0.0) - min(self.low, 0.0)) / self.step)

    def multiples_of(self, step: float | None) -> bool:
        """Whether they are, but for what float32 rounds."""
        if self.low == self.high and step:
            ratio = self.low / step
            return math.isfinite(ratio) and abs(ratio - round(ratio)) < 1e-3
        return step is not None and self.step is not None and math.isclose(self.step, step)

    def scaled(self, low: float, high: float | None = None) -> "Numbers":
        """Their products with a number, or with several between two bounds."""
        high = low if high is None else high
        ends = [a * b if a and b else 0.0 for a in (self.low, self.high) for b in (low, high)]
        one = low == high != 0
        step = self.step * abs(low) if one and self.step else None
        return Numbers(min(ends), max(ends), step, self.widest if one else None)


ANY = Numbers()


@dataclass(frozen=True)
class Reads:
    """What a convolution or linear layer sees of its input's channels."""

    labels: Tensor  # (c_in,)
    constants: Tensor  # (c_in,)
    padded: bool  # with zeros, which tell a constant's border from its inside
    depthwise: bool = False  # each output is made of one input


@dataclass(frozen=True)
class Record:
    """One operation of the forward pass. Shapes include the batch dimension of 1."""

    name: str
    kind: str  # as in aten_operations, with UNKNOWN and STORED
    operation: str  # PyTorch's name for it
    in_shape: Shape
    out_shape: Shape
    inputs: tuple[int, ...]  # records whose results it uses; copies are seen through
    parameters: tuple[str, ...] = ()
    stores: tuple[Tensor, ...] = ()  # values made of parameters, beside weight and bias
    weight: Tensor | None = None  # convolutions and linear layers: (c_out, c_in / groups, ...)
    weights: Weights | None = None  # the same, counted
    bias: Tensor | None = None  # (c_out,)
    shared: bool = False  # an earlier record has the same weight
    reads: Reads | None = None  # of convolutions and linear layers
    state: tuple[Tensor | None, ...] = ()  # of BatchNorm: weight, bias, running mean and variance
    # of its result: of layers and BatchNorm (c_out,), else as they lie in it, see Channels
    labels: Tensor | None = None
    constants: Tensor | None = None
    layer: str = ""  # name of the layer that can be narrowed, if it is one
    window: float = 1  # pooling: input elements per output element; matmul: length of the products
    extra: tuple[float, float] = (0, 0)  # (mults, adds) per output element beyond its kind's
    # bits of the activations that it takes, if they are whole numbers times a step
    activation_bits: int | None = None
    needless: int = 0  # bounds of a clamp that its input keeps
    dequantizes: bool = False  # ends with a product of whole numbers and their step

    @property
    def width(self) -> int:
        """Number of channels of its result, in whatever dimension."""
        if self.labels is not None and self.labels.numel() > 1:
            return self.labels.numel()
        return self.out_shape[1] if len(self.out_shape) > 1 else math.prod(self.out_shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The stored values that it needs, whoever else needs them, too."""
        return tuple(t for t in (self.weight, self.bias, *self.stores) if t is not None)

    @property
    def stored(self) -> int:
        """Number of values it needs."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def folds(self) -> bool:
        """A BatchNorm by stored statistics, scale and shift, which can become part of a layer."""
        return self.kind == "batchnorm" and bool(self.state)

    @property
    def ternary(self) -> bool:
        """A layer with ternary weights."""
        return self.weights is not None and self.weights.ternary

    @cached_property
    def free_inputs(self) -> Tensor | None:
        """bool (c_in,): inputs without arithmetic: 0, or a constant that belongs to the bias; None:
        there are none."""
        constants = self.reads.constants
        free = (constants == 0) | (~constants.isnan() & (not self.reads.padded))
        return free if bool(free.any()) else None

    def used(self, filters: Tensor) -> Tensor:
        """bool (groups, i): inputs that take arithmetic in any of these filters, (groups, o)."""
        found = self.weights.used(filters)
        free = self.free_inputs
        return found if free is None else found & ~free.reshape(found.shape)

    @property
    def folded(self) -> Tensor:
        """bool (c_out,): filters with constants other than 0, whose products belong to the bias."""
        counts, constants = self.weights.counts, self.reads.constants
        if self.free_inputs is None or self.reads.padded:
            return torch.zeros(self.weights.filters, dtype=torch.bool)
        nonzero = self.free_inputs & (constants != 0)
        return (counts * nonzero.reshape(len(counts), 1, -1)).any(-1).flatten()

    def same_channels(self, other: "Record") -> bool:
        """Whether nothing happens on the way from this record's result to the input of another."""
        if self.out_shape == other.in_shape:
            return True
        aligned = None not in (self.labels, other.labels)
        as_many = math.prod(self.out_shape) == math.prod(other.in_shape)
        return aligned and as_many and torch.equal(self.labels, other.labels)


@dataclass(frozen=True)
class Padding:
    """Channels of zeros around an activation's own, as option-A shortcuts make them: narrowed as
    a record is, but without cost."""

    layer: str  # "" where the code that pads cannot be narrowed
    reads: Reads
    labels: Tensor  # (c_out,) of its result


@dataclass(frozen=True)
class Trace:
    """The forward pass of a network."""

    records: list[Record]
    outputs: frozenset[int]  # records whose results leave the network
    unused: tuple[str, ...]  # parameters the pass never touches
    labels: Labels
    paddings: list[Padding]
    followed: bool  # False: the pass needed an image's values, another image may go another way

    @property
    def unknown(self) -> dict[str, int]:
        """Operations without a rule and how often they occur."""
        return dict(Counter(r.operation for r in self.records if r.kind == UNKNOWN))

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For each record the records that use its result; -1 stands for the network's output."""
        users: list[list[int]] = [[] for _ in self.records]
        for i, record in enumerate(self.records):
            for source in record.inputs:
                users[source].append(i)
        for i in self.outputs:
            users[i].append(-1)
        return users

    def batchnorm_after(self, i: int) -> int | None:
        """The BatchNorm that alone takes a record's result, and nothing but that."""
        users = self.consumers[i]
        norm = self.records[users[0]] if len(users) == 1 and users[0] >= 0 else None
        alone = norm is not None and norm.folds and norm.inputs == (i,)
        return users[0] if alone and self.records[i].same_channels(norm) else None

    def takes_shifts(self, i: int) -> int | None:
        """The BatchNorm after a layer without bias that subtracts what constants add to it: from
        the mean of the same channel, so that nothing has to be added."""
        record, after = self.records[i], self.batchnorm_after(i)
        norm = None if after is None else self.records[after]
        aligned = norm and norm.layer and None not in (norm.labels, record.labels)
        fits = aligned and record.bias is None and torch.equal(norm.labels, record.labels)
        return after if fits and record.out_shape == norm.in_shape else None


@dataclass
class Tag:
    """What is known of a tensor during the pass. The default: nothing."""

    from_image: bool = True  # False: made of parameters and constants only, so precomputed
    producers: frozenset[int] = frozenset()  # records that it comes from; copies are seen through
    parameters: frozenset[str] = frozenset()  # that it is made of, if it is not from the image
    stores: tuple[Tensor, ...] = ()  # values to store for it: its own, or what it is made of
    value: Tensor | None = None  # numbers, if it does not depend on the image
    channels: Channels | None = None
    adapts: bool = False  # made in the form of an activation, whatever that is
    selects: bool = False  # true or false, perhaps as numbers
    numbers: Numbers = ANY  # if it is from the image
    step: Tensor | None = None  # of which it may be multiples, if it is not
    origin: object = field(default_factory=object)  # the same for what is the same value
    made_by: "Call | None" = None  # of differences and comparisons
    source: str = ""  # the parameter or buffer that it is, or the transpose of
    writes: int = 0  # in-place operations on any tensor before it was tagged

    def put(self, tensor: Tensor) -> None:
        """Tags ride on the tensors themselves."""
        tensor._scoring_tag = self


def tag_of(tensor: Tensor) -> Tag:
    """A tensor's tag; one that has none came from nowhere known."""
    return getattr(tensor, "_scoring_tag", None) or Tag()


def tagged(tensor: Tensor) -> bool:
    """Whether the pass has made it, or knows it."""
    return hasattr(tensor, "_scoring_tag")
