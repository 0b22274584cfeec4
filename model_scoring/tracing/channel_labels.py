"""Labels of channels: which have to leave a network together, and which have to stay.

A label stands for a channel that some layer makes. Sums and products tie the labels of their
operands, as a channel can only leave both; what is not understood pins the labels that it sees:
these channels are needed. Fixed ones may be dead, but the code has no place to narrow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAN = float("nan")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Channels:
    """What is known of an activation's channels: tensors that broadcast to its shape, of size 1
    along dimensions where nothing differs."""

    labels: Tensor  # int64
    constants: Tensor  # see constant_channels; NaN where the channel depends on the image

    @classmethod
    def varying(cls, labels: Tensor) -> "Channels":
        """Channels that all depend on the image."""
        return cls(labels, torch.full(labels.shape, NAN))

    @classmethod
    def cat(cls, parts: "list[Channels]", dim: int) -> "Channels":
        """One after the other."""
        sides = ([part.labels for part in parts], [part.constants for part in parts])
        return cls(*(torch.cat(side, dim) for side in sides))

    @property
    def differs(self) -> set[int]:
        """The dimensions along which channels differ."""
        return {d for d, size in enumerate(self.labels.shape) if size > 1}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Channels":
        """Both rearranged in the same way."""
        return Channels(change(self.labels), change(self.constants))

    def vectors(self, shape: Shape) -> "Channels | None":
        """As (C,), for an activation (N, C, ...); None if they are not one for each channel."""
        labels, rank = self.labels, len(shape)
        if rank < 2 or labels.dim() != rank or not labels.numel() == labels.shape[1] == shape[1]:
            return None
        return self.map(torch.flatten)

    def within(self, shape: Shape) -> "Channels | None":
        """Themselves, if they broadcast to an activation of this shape."""
        sizes = self.labels.shape
        fits = len(sizes) == len(shape)
        fits = fits and all(a in (1, b) for a, b in zip(sizes, shape, strict=True))
        return self if fits else None

    def spread(self, shape: Shape) -> "Channels":
        """Those of one for each channel, (C,), for an activation (N, C, ...)."""
        return self.map(lambda part: part.reshape([1, -1, *[1] * (len(shape) - 2)]))


Pairs = list[tuple[Tensor, Tensor]]  # labels in the same places; both broadcast


@dataclass
class Labels:
    """Labels that are tied, pinned, fixed, or stay in balance."""

    count: int = 0
    tied: Pairs = field(default_factory=list)  # needed together
    bound: Pairs = field(default_factory=list)  # can only be taken out together
    balanced: list[Tensor] = field(default_factory=list)  # (parts, n): parts stay equally long
    pinned: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)

    def new(self, count: int, rank: int) -> Tensor:
        """Labels (1, count, 1, ...) of `rank` dimensions for an activation's channels."""
        first, self.count = self.count, self.count + count
        shape = [1, count, *[1] * (rank - 2)] if rank > 1 else [count] * rank
        return torch.arange(first, self.count).reshape(shape)

    def unknown(self, count: int, rank: int) -> Channels:
        """New channels of which nothing is known but that they are needed."""
        made = Channels.varying(self.new(count, rank))
        self.pin(made)
        return made

    def pin(self, *known: Channels | None) -> None:
        """These channels are needed."""
        for channels in known:
            if channels is not None:
                self.pinned.update(channels.labels.flatten().tolist())

    def fix(self, labels: Tensor) -> None:
        """These channels stay, needed or not."""
        self.fixed.update(labels.flatten().tolist())

    def roots(self, *, buildable: bool) -> Tensor:
        """(labels,) a representative of those tied to each: connected components, by hooking and
        pointer jumping. `buildable`: of those that can only be taken out together."""
        pairs = [torch.broadcast_tensors(*p) for p in self.tied + self.bound * buildable]
        sides = [torch.cat([s.flatten() for s in side]) for side in zip(*pairs, strict=True)]
        root, before = torch.arange(self.count), None
        while sides and (before is None or not torch.equal(root, before)):
            before, ends = root, [root[side] for side in sides]
            smaller = torch.minimum(*ends)
            for end in ends:
                root = root.scatter_reduce(0, end, smaller, "amin")
            root = root[root]
        return root


class Width(int):
    """A number of channels as the network's code asks for it. In a view it adapts when channels
    leave, and so does a share of it; any other use depends on the number itself, so that the
    channels stay."""

    fix: Callable[[], None]

    def __new__(cls, value: int, fix: Callable[[], None]) -> "Width":
        width = super().__new__(cls, value)
        width.fix = fix
        return width

    def __floordiv__(self, parts: int) -> "Width":
        return Width(int(self) // parts, self.fix)


def _fixing(name: str) -> Callable:
    def operation(self: Width, *others: object) -> object:
        self.fix()
        return getattr(int, name)(self, *others)

    return operation


for _name in ("add", "sub", "mul", "truediv", "mod", "pow"):
    setattr(Width, f"__{_name}__", _fixing(f"__{_name}__"))
    setattr(Width, f"__r{_name}__", _fixing(f"__r{_name}__"))
Width.__float__, Width.__neg__ = _fixing("__float__"), _fixing("__neg__")
