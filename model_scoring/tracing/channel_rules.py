"""What operations without weights do to the channels of their inputs: one rule for each way.

A rule gives the Channels of each output of a call. None: it does not apply to these arguments;
then the channels are not understood, and stay.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, wraps
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from model_scoring.tracing.channel_labels import NAN, Channels, Labels, Shape, Width
from model_scoring.tracing.operation_record import Padding, Reads, Tag

Known = list[Channels] | None


@dataclass(frozen=True)
class Caller:
    """The call of torch's Python interface that an operation is part of."""

    name: str = ""
    arguments: tuple = ()
    options: dict = field(default_factory=dict)

    def given(self, position: int, *names: str) -> object:
        """An argument, by its position or one of its names; None if it is not there."""
        if position < len(self.arguments):
            return self.arguments[position]
        return next((self.options[name] for name in names if name in self.options), None)


@dataclass(frozen=True)
class Call:
    """One ATen operation, what is known of its arguments, and where rules note what they find."""

    function: Callable
    name: str  # as in aten_operations
    args: tuple
    kwargs: dict
    arguments: dict[str, object]  # both, by their names in the operation's schema
    inputs: list[Tensor]  # without those of `out=`
    tags: list[Tag]  # of the inputs
    in_shapes: list[Shape]  # of the inputs, before an in-place operation changed them
    outputs: list[Tensor]
    writes: bool  # in-place
    caller: Caller
    layer: str  # the layer at work, if it can be narrowed
    labels: Labels
    paddings: list[Padding]

    @cached_property
    def shapes(self) -> list[Shape]:
        """Of the outputs."""
        return [tuple(output.shape) for output in self.outputs]

    @cached_property
    def parameters(self) -> frozenset[str]:
        """That its inputs are made of."""
        return frozenset().union(*(tag.parameters for tag in self.tags))

    def tag(self, argument: str) -> Tag | None:
        """The tag of an argument that is a tensor; None if it is not given."""
        given = self.arguments.get(argument)
        pairs = zip(self.inputs, self.tags, strict=True)
        return next((tag for tensor, tag in pairs if tensor is given), None)


Rule = Callable[[Call], Known]


def unary(rule: Callable[[Call, Shape, Channels], Known]) -> Rule:
    """A rule for operations of one input: it gets that input's shape and channels as well."""

    @wraps(rule)
    def checked(call: Call) -> Known:
        images = [i for i, tag in enumerate(call.tags) if tag.from_image]
        if len(images) != 1 or (known := call.tags[images[0]].channels) is None:
            return None
        return rule(call, call.in_shapes[images[0]], known)

    return checked


@unary
def same(call: Call, shape: Shape, known: Channels) -> Known:
    """Copies, rounded to their type, and padding that repeats what is there. Whole numbers would be
    other constants."""
    if call.arguments.get("dtype") is None:
        return [known] * len(call.shapes)
    dtype = call.outputs[0].dtype
    if not dtype.is_floating_point:
        return [Channels.varying(known.labels)]
    return [Channels(known.labels, known.constants.to(dtype).to(known.constants.dtype))]


def elementwise(call: Call) -> Known:
    """Each number by itself; the channels of several operands can only leave together."""
    operands, size = list(zip(call.inputs, call.tags, strict=True)), call.shapes[0]
    images = [(x, tag.channels) for x, tag in operands if tag.from_image]
    if any(known is None or x.dim() != len(size) for x, known in images):
        return None
    made = [known.labels for _, known in images]
    differs = set.union(*(known.differs for _, known in images))
    if any(x.shape[d] != size[d] for d in differs for x, _ in images):
        return None  # one channel meets several
    call.labels.tied += [(made[0], other) for other in made[1:] if other is not made[0]]
    if any(not (tag.from_image or tag.adapts) and x.numel() > 1 for x, tag in operands):
        call.labels.fix(made[0])  # stored values for each channel, which nobody narrows
    numbers = [
        tag.channels.constants if tag.from_image else _condensed(tag.value) for _, tag in operands
    ]
    constants = _applied(call, numbers)
    if constants.shape != made[0].shape:  # stored values differ within a channel
        return [Channels.varying(made[0])]
    return [Channels(made[0], constants)]


def _condensed(value: Tensor | None) -> Tensor | None:
    """Stored numbers, of size 1 along dimensions in which they do not differ."""
    for d in range(0 if value is None else value.dim()):
        first = value.narrow(d, 0, min(1, value.shape[d]))
        if value.shape[d] > 1 and bool((value == first).all()):
            value = first
    return value


def _applied(call: Call, operands: list[Tensor | None]) -> Tensor:
    """The operation on its operands' constants, NaN where one is not known."""
    numbers = [torch.tensor(NAN) if n is None else n.clone() for n in operands]
    varies, zero = (sum(test(n) for n in numbers) > 0 for test in (torch.isnan, torch.logical_not))
    # of the operands' types, and as large as the result, as the operation may be in-place
    pairs = zip(numbers, call.inputs, strict=True)
    rest = iter([n.to(x.dtype).expand(varies.shape).clone() for n, x in pairs])
    args, kwargs = tree_map(
        lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
    )
    try:
        result = call.function(*args, **kwargs)
    except RuntimeError:  # not on numbers of these types
        return torch.full_like(varies, NAN, dtype=torch.get_default_dtype())
    constants = torch.where(varies, NAN, result)  # not every operation carries NaN on
    # a 0 stays 0, whatever it is multiplied with
    return constants.masked_fill(zero, 0.0) if call.name == "mul" else constants


def _only(constants: Tensor, value: float) -> Tensor:
    """The constants that have this value."""
    return torch.where(constants == value, constants, NAN)


@unary
def rounding(call: Call, shape: Shape, known: Channels) -> Known:
    """A constant stays known where it is 0, which quantizers keep, or where it rounds alike in any
    precision."""
    if any(
        x.numel() > 1
        for x, tag in zip(call.inputs, call.tags, strict=True)
        if tag.value is not None
    ):
        call.labels.fix(known.labels)  # a scale for each channel, which nobody narrows
    constants = known.constants
    if call.name == "round" and not call.arguments.get("decimals"):
        tie = (constants - constants.floor() - 0.5).abs() < 1e-3
        constants = constants.round().masked_fill(tie, NAN)
    else:
        constants = _only(constants, 0.0)
    made = Channels(known.labels, constants)
    return [made, *[Channels.varying(made.labels)] * (len(call.shapes) - 1)]  # others: masks


@unary
def window(call: Call, shape: Shape, known: Channels) -> Known:
    """Pooling over pixels. An average that takes in a border of zeros leaves only a 0 constant."""
    if not known.differs <= {0, 1}:
        return None
    options = [call.arguments.get(name) for name in ("padding", "ceil_mode", "divisor_override")]
    if call.name == "avg_pool2d" and any(tree_leaves(options)):
        known = Channels(known.labels, _only(known.constants, 0.0))
    return [known] * len(call.shapes)


@unary
def reduction(call: Call, shape: Shape, known: Channels) -> Known:
    """Mean, sum or largest along dimensions in which the channels do not differ."""
    given = call.arguments.get("dim")
    given = [given] if isinstance(given, int) else given or range(len(shape))
    dims = {d % len(shape) for d in given}
    if known.differs & dims:
        return None
    count = math.prod(shape[d] for d in dims) if call.name == "sum" else 1
    kept, keep = sorted(dims), bool(call.arguments.get("keepdim"))
    made = Channels(known.labels, count * known.constants).map(lambda t: t.amax(kept, keepdim=keep))
    return [made, *[Channels.varying(made.labels)] * (len(call.shapes) - 1)]  # the others: indices


@unary
def move(call: Call, shape: Shape, known: Channels) -> Known:
    """Dimensions in another order, added, dropped, repeated, or cut. Where channels are cut, they
    can only leave parts that `chunk` makes, which have to stay equal: parts of a given size would
    be other channels once some have left."""
    differs, shapes = known.differs, call.shapes
    cuts = ("slice", "select", "unbind", "split", "split_with_sizes")
    cut = call.name in cuts and shapes != [shape]
    if cut and call.arguments.get("dim", 0) % len(shape) in differs:
        if call.caller.name != "chunk" or len(set(shapes)) > 1 or len(differs) > 1:
            call.labels.fix(known.labels)
        else:
            call.labels.balanced.append(known.labels.reshape(len(shapes), -1))
    rest = list(call.arguments.values())[1:]
    parts = (part.expand(shape) for part in (known.labels, known.constants))
    moved = (tree_leaves(call.function(part, *rest)) for part in parts)
    return [Channels(*pair).map(_reduced) for pair in zip(*moved, strict=True)]


def _reduced(moved: Tensor) -> Tensor:
    """Without what was only expanded, which has stride 0: nothing differs there."""
    return moved[tuple(slice(None if stride else 1) for stride in moved.stride())]


def concatenation(call: Call) -> Known:
    """Channels one after the other."""
    dim = call.arguments.get("dim", 0) % len(call.shapes[0])
    known = [tag.channels for tag in call.tags]
    if None in known or any(k.differs - {dim} for k in known):
        return None
    if any(k.labels.shape[dim] != x.shape[dim] for k, x in zip(known, call.inputs, strict=True)):
        return None
    return [Channels.cat(known, dim)]


@unary
def padding(call: Call, shape: Shape, known: Channels) -> Known:
    """A border of one value: a constant stays one if it has that value. Padded channels are new."""
    pads, value = list(call.arguments["pad"]), float(call.arguments.get("value", 0))
    sides = {len(shape) - 1 - i // 2: pads[i : i + 2] for i in range(0, len(pads), 2)}
    grown = {dim for dim, pair in sides.items() if any(pair)}
    if not grown & known.differs:
        return [Channels(known.labels, _only(known.constants, value))] if grown else [known]
    if grown != {1} or min(sides[1]) < 0 or known.differs != {1}:
        return None
    new = [call.labels.new(n, len(shape)) for n in sides[1]]
    before, after = (Channels(t, known.constants.new_full(t.shape, value)) for t in new)
    if not call.layer:
        call.labels.fix(torch.cat(new, 1))
    joined = Channels.cat([before, known, after], 1)
    reads = Reads(known.labels.flatten(), known.constants.flatten(), padded=False)
    call.paddings.append(Padding(call.layer, reads, joined.labels.flatten()))
    return [joined]


@unary
def view(call: Call, shape: Shape, known: Channels) -> Known:
    """Dimensions that are split or merged; where channels are, only as the code lets them adapt:
    by `flatten`, by a size of -1, or by the input's own width."""
    new, differs = call.shapes[0], known.differs
    adapts = _adapting(call.caller, len(new))
    spread, moved = [1] * len(shape), [1] * len(new)  # only where channels differ
    split: list[int] = []  # parts of a dimension beside the one that shrinks
    for before, after in _factors(shape, new):
        if not differs & set(before):
            continue
        free = [d for d in after if d in adapts]
        if len(free) == 1 and 1 in (len(before), len(after)):
            split += [d for d in after if d != free[0]]
        else:
            call.labels.fix(known.labels)
        for sizes, full, dims in ((spread, shape, before), (moved, new, after)):
            for d in dims:
                sizes[d] = full[d]
    result = known.map(lambda part: part.expand(spread).reshape(moved))
    for d in split:  # all parts lose the same channels
        first, *others = result.labels.unbind(d)
        call.labels.bound += [(first, other) for other in others]
    return [result]


def _adapting(caller: Caller, rank: int) -> set[int]:
    """Dimensions of a view's result whose size follows from its input's, whatever that is."""
    if caller.name not in ("view", "reshape"):  # flatten, or inside a function of torch's
        return set(range(rank))
    sizes = caller.given(1, "shape", "size")
    sizes = sizes if isinstance(sizes, tuple | list) else caller.arguments[1:]
    return {d for d, n in enumerate(sizes) if isinstance(n, Width) or (n == -1 and d > 0)}


def _factors(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest groups of neighbouring dimensions with as many elements in both shapes, without
    dimensions of size 1."""
    sides = []  # number of elements up to a dimension -> dimension
    for shape in (old, new):
        dims = [d for d, n in enumerate(shape) if n > 1]
        sides.append(dict(zip(accumulate((shape[d] for d in dims), mul), dims, strict=True)))
    start = 0
    for end in sorted(sides[0].keys() & sides[1].keys()):
        before, after = ([d for n, d in side.items() if start < n <= end] for side in sides)
        yield before, after
        start = end


_RULES = (same, elementwise, rounding, window, reduction, move, concatenation, padding, view)
RULES: dict[str, Rule] = {rule.__name__: rule for rule in _RULES}
