"""What operations without weights do to the channels of their inputs: one rule for each way.

A rule (call, output shapes, labels) gives the Channels of each output. None: it does not apply to
these arguments; then the channels are not understood, and stay.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from model_scoring.tracing.channel_labels import Labels, Width
from model_scoring.tracing.constant_channels import NAN, none_if_varying
from model_scoring.tracing.operation_record import Channels, Tag

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Caller:
    """The call of torch's Python interface that an operation is part of."""

    name: str = ""
    arguments: tuple = ()
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One ATen operation: its arguments by their names in the schema, and what is known of them."""

    function: Callable
    name: str  # of the operation, see aten_operations
    args: tuple
    kwargs: dict
    arguments: dict[str, object]  # both, by their names in the operation's schema
    inputs: list[Tensor]
    tags: list[Tag]  # of the inputs
    caller: Caller
    layer: str  # the layer at work, if it can be narrowed

    def images(self) -> list[tuple[Tensor, Tag]]:
        """The inputs that depend on the image."""
        return [pair for pair in zip(self.inputs, self.tags, strict=True) if pair[1].from_image]

    def only(self) -> tuple[Shape, Channels] | None:
        """Shape and channels of the input, if a single one depends on the image."""
        found = self.images()
        if len(found) != 1 or found[0][1].channels is None:
            return None
        return tuple(found[0][0].shape), found[0][1].channels


Rule = Callable[[Call, list[Shape], Labels], list[Channels] | None]


def differing(labels: Tensor) -> set[int]:
    """The dimensions along which labels differ."""
    return {d for d, size in enumerate(labels.shape) if size > 1}


def same(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Copies, and padding that repeats what is there."""
    found = call.only()
    return found and [found[1]] * len(shapes)


def elementwise(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Each number by itself; the channels of several operands can only leave together."""
    images = call.images()
    if any(tag.channels is None or x.dim() != len(shapes[0]) for x, tag in images):
        return None
    found = [tag.channels for _, tag in images]
    for d in set.union(*(differing(c.labels) for c in found)):
        if any(x.shape[d] != shapes[0][d] for x, _ in images):  # one channel meets several
            return None
    for other in found[1:]:
        labels.tie(found[0].labels, other.labels)
    pairs = zip(call.inputs, call.tags, strict=True)
    if any(not tag.from_image and x.numel() > 1 for x, tag in pairs):
        labels.pin(found[0].labels)  # stored values for each channel, which nobody narrows
    return [Channels(found[0].labels, _applied(call, found))]


def _applied(call: Call, found: list[Channels]) -> Tensor | None:
    """The operation on its operands' constants."""
    if all(c.constants is None for c in found):
        return None
    numbers = [_numbers(tag).clone() for tag in call.tags]  # the operation may be in-place
    operands = iter(numbers)
    args, kwargs = tree_map(
        lambda leaf: next(operands) if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
    )
    varies = sum(number.isnan() for number in numbers) > 0
    try:
        result = call.function(*args, **kwargs)
    except RuntimeError:  # not on numbers of this shape or type
        return None
    constants = torch.where(varies, NAN, result)  # not every operation carries NaN on
    if call.name == "mul":  # a 0 stays 0, whatever it is multiplied with
        zero = sum(number == 0 for number in numbers) > 0
        constants = constants.masked_fill(zero, 0.0)
    return none_if_varying(constants)


def _numbers(tag: Tag) -> Tensor:
    """What is known of an operand's values, NaN elsewhere."""
    number = tag.channels.constants if tag.from_image else tag.value
    if number is None:
        number = torch.full(tag.channels.labels.shape if tag.from_image else (), NAN)
    return number


def window(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Pooling over pixels. An average that takes in a border of zeros leaves only a 0 constant."""
    found = call.only()
    if found is None or not differing(found[1].labels) <= {0, 1}:
        return None
    channels, padding = found[1], call.arguments.get("padding", ())
    borders = any(padding) or call.arguments.get("ceil_mode")
    if call.name == "avg_pool2d" and (borders or call.arguments.get("divisor_override")):
        channels = Channels(channels.labels, _only(channels.constants, 0.0))
    return [channels] * len(shapes)


def _only(constants: Tensor | None, value: float) -> Tensor | None:
    """The constants that have this value."""
    if constants is None:
        return None
    return none_if_varying(torch.where(constants == value, constants, NAN))


def reduction(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Mean, sum or largest along dimensions in which the channels do not differ."""
    found = call.only()
    if found is None or not call.arguments.get("dim"):
        return None
    (shape, channels), keep = found, bool(call.arguments.get("keepdim"))
    dims = [d % len(shape) for d in call.arguments["dim"]]
    if differing(channels.labels) & set(dims):
        return None
    constants = channels.constants
    if constants is not None:
        count = math.prod(shape[d] for d in dims) if call.name == "sum" else 1
        constants = (count * constants).amax(dims, keepdim=keep)
    return [Channels(channels.labels.amax(dims, keepdim=keep), constants)]


def move(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Dimensions in another order, added, dropped or repeated."""
    found = call.only()
    if found is None:
        return None
    (shape, channels), rest = found, list(call.arguments.values())[1:]

    def one(known: Tensor | None) -> Tensor | None:
        """Labels or constants are moved as the activation is."""
        if known is None:
            return None
        result = call.function(known.expand(shape), *rest)
        for d in range(result.dim()):  # nothing differs along what was only expanded
            if result.stride(d) == 0:
                result = result.narrow(d, 0, 1)
        return result

    return [Channels(one(channels.labels), one(channels.constants))]


def along(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Parts along a dimension in which the channels do not differ, or all of one."""
    found = call.only()
    if found is None:
        return None
    shape, channels = found
    dim = call.arguments.get("dim", 0) % len(shape)
    if dim not in differing(channels.labels):
        parts = [channels.labels, channels.constants]
        if call.name != "slice":
            parts = [p if p is None else p.squeeze(dim) for p in parts]
        return [Channels(*parts)] * len(shapes)
    return [channels] if call.name == "slice" and shapes[0] == shape else None


def split(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Equal parts of the channels, as `chunk` makes them, which have to stay equal. Parts of a
    given size would be another number of them when channels leave."""
    found = call.only()
    if found is None:
        return None
    shape, channels = found
    dim = call.arguments.get("dim", 0) % len(shape)
    if dim not in differing(channels.labels):
        return [channels] * len(shapes)
    if call.caller.name != "chunk" or differing(channels.labels) != {dim}:
        return None
    if len({s[dim] for s in shapes}) > 1:
        return None
    labels.balanced.append(channels.labels.reshape(len(shapes), -1))
    parts = [channels.labels.chunk(len(shapes), dim), [None] * len(shapes)]
    if channels.constants is not None:
        parts[1] = channels.constants.chunk(len(shapes), dim)
    return [Channels(*pair) for pair in zip(*parts, strict=True)]


def concatenation(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Channels one after the other."""
    dim = call.arguments.get("dim", 0) % len(shapes[0])
    found = [tag.channels for tag in call.tags if tag.from_image]
    whole = len(found) == len(call.inputs) and all(c and c.labels.dim() > dim for c in found)
    if not whole or any(differing(c.labels) - {dim} for c in found):
        return None
    if any(c.labels.shape[dim] != x.shape[dim] for c, x in zip(found, call.inputs, strict=True)):
        return None
    constants = None
    if any(c.constants is not None for c in found):
        known = (torch.full(c.labels.shape, NAN) if c.constants is None else c.constants
                 for c in found)  # fmt: skip
        constants = torch.cat(list(known), dim)
    return [Channels(torch.cat([c.labels for c in found], dim), constants)]


def padding(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """A border of one value: a constant stays one if it has that value. Padded channels are new."""
    found = call.only()
    if found is None:
        return None
    (shape, channels), value = found, float(call.arguments.get("value", 0))
    pads = list(call.arguments["pad"])
    sides = {len(shape) - 1 - i // 2: pads[i : i + 2] for i in range(0, len(pads), 2)}
    grown = {dim for dim, pair in sides.items() if any(pair)}
    if grown & differing(channels.labels):
        if grown != {1} or min(sides[1]) < 0 or differing(channels.labels) != {1}:
            return None
        before, after = (labels.new(n, len(shape), pinned=not call.layer) for n in sides[1])
        known = torch.full(channels.labels.shape, NAN)
        known = known if channels.constants is None else channels.constants
        ends = [torch.full(t.shape, value, dtype=known.dtype) for t in (before, after)]
        joined = torch.cat([before, channels.labels, after], 1)
        return [Channels(joined, torch.cat([ends[0], known, ends[1]], 1))]
    kept = _only(channels.constants, value) if grown else channels.constants
    return [Channels(channels.labels, kept)]


def view(call: Call, shapes: list[Shape], labels: Labels) -> list[Channels] | None:
    """Dimensions that are split or merged; where channels are, only as the code lets them adapt:
    by `flatten`, by a size of -1, or by the input's own width."""
    found = call.only()
    if found is None:
        return None
    (old, channels), new = found, shapes[0]
    differs, adapts = differing(channels.labels), _adapting(call.caller, len(new))
    spread, moved = [1] * len(old), [1] * len(new)  # only where channels differ
    split_into = []
    for before, after in _factors(old, new):
        if not differs & set(before):
            continue
        free = [d for d in after if d in adapts]
        if len(free) != 1 or (len(before) > 1 and len(after) > 1):
            return None
        split_into.append((after, free[0]))
        for shape, sizes, dims in ((spread, old, before), (moved, new, after)):
            for d in dims:
                shape[d] = sizes[d]
    known = (t if t is None else t.expand(spread).reshape(moved)
             for t in (channels.labels, channels.constants))  # fmt: skip
    result = Channels(*known)
    for after, free in split_into:  # every part loses the same channels
        for d in set(after) - {free}:
            first, *others = result.labels.unbind(d)
            for other in others:
                labels.tie(first, other)
    return [result]


def _adapting(caller: Caller, rank: int) -> set[int]:
    """Dimensions of a view's result whose size follows from its input's, whatever that is."""
    if caller.name not in ("view", "reshape"):  # flatten, or inside a function of torch's
        return set(range(rank))
    sizes = caller.arguments[1:] or tuple(caller.options.values())[:1]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    return {d for d, n in enumerate(sizes) if isinstance(n, Width) or (n == -1 and d > 0)}


def _factors(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest groups of neighbouring dimensions with as many elements in both shapes, without
    dimensions of size 1."""
    left, right = ([d for d, n in enumerate(shape) if n > 1] for shape in (old, new))
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        while (one := math.prod(old[d] for d in before)) != (
            other := math.prod(new[d] for d in after)
        ):
            grows, source = (before, left) if one < other else (after, right)
            grows.append(source.pop(0))
        yield before, after


RULES: dict[str, Rule] = {
    "same": same,
    "elementwise": elementwise,
    "window": window,
    "reduction": reduction,
    "move": move,
    "along": along,
    "split": split,
    "concatenation": concatenation,
    "padding": padding,
    "view": view,
}
