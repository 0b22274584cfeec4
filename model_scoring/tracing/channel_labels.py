"""Labels of channels: which have to leave a network together, and which have to stay.

A label stands for a channel that some layer makes. Sums and products tie the labels of their
operands (union-find), as a channel can only leave both; what is not understood pins the labels that
it sees: these channels are needed. Fixed ones may be dead, but the code has no place to narrow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Labels:
    """A union-find over labels, with those that are pinned, fixed, or stay in balance."""

    parents: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)
    balanced: list[Tensor] = field(default_factory=list)  # (parts, n): parts stay equally long
    bound: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # can only leave together

    def new(self, count: int, rank: int, *, pinned: bool = False) -> Tensor:
        """Labels (1, count, 1, ...) of `rank` dimensions for an activation's channels."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        if pinned:
            self.pinned.update(range(first, first + count))
        shape = [1, count, *[1] * (rank - 2)] if rank > 1 else [count] * rank
        return torch.arange(first, first + count).reshape(shape)

    def root(self, label: int) -> int:
        """The representative of a label's set, with path halving."""
        while self.parents[label] != label:
            self.parents[label] = label = self.parents[self.parents[label]]
        return label

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Union of the sets of labels in the same places; the tensors broadcast."""
        if one is not other:
            pairs = torch.broadcast_tensors(one, other)
            for a, b in zip(*(t.flatten().tolist() for t in pairs), strict=True):
                self.parents[self.root(a)] = self.root(b)

    def pin(self, labels: Tensor) -> None:
        """These channels are needed."""
        self.pinned.update(labels.flatten().tolist())

    def fix(self, labels: Tensor) -> None:
        """These channels stay, needed or not."""
        self.fixed.update(labels.flatten().tolist())

    def roots(self, *, buildable: bool) -> Tensor:
        """(labels,) the representative of each; `buildable`: of those that can only leave
        together."""
        sets = Labels([*self.parents])
        for pair in self.bound if buildable else ():
            sets.tie(*pair)
        return torch.tensor([sets.root(i) for i in range(len(sets.parents))], dtype=torch.int64)


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
