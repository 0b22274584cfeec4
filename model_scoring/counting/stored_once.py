"""Which values are stored already: what several operations share counts once, with the first."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from model_scoring.tracing.operation_record import Record
from model_scoring.tracing.stored_values import identity, memory

Vectors = tuple[Tensor | None, ...]  # of one entry for each channel


def places(tensor: Tensor) -> Tensor:
    """int64, of its shape: where in its memory each of its values is."""
    at = torch.tensor(tensor.storage_offset())
    for n, stride in zip(tensor.size(), tensor.stride(), strict=True):
        at = at[..., None] + stride * torch.arange(n)
    return at


def repeats(tensor: Tensor) -> bool:
    """Whether one place holds several of its values, as in what is expanded."""
    pairs = zip(tensor.size(), tensor.stride(), strict=True)
    return sum((n - 1) * stride for n, stride in pairs) + 1 < tensor.numel()


def entries(vectors: Vectors) -> list[Hashable]:
    """For each entry of a result what it is made of: the places of the vectors' entries."""
    given = [(memory(v), places(v).tolist()) for v in vectors if v is not None]
    made_of = zip(*(at for _, at in given), strict=True)
    where = tuple(None if v is None else memory(v) for v in vectors)
    return [(where, *entry) for entry in made_of]


class StoredOnce:
    """What the records counted so far store."""

    def __init__(self, records: Iterable[Record]) -> None:
        # memory -> records, by position, and what they use of it
        self.users: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for i, record in enumerate(records):
            own = set(map(identity, record.tensors))  # among them a BatchNorm's scale and shift
            more = (t for t in record.state if t is not None and identity(t) not in own)
            for tensor in (*record.tensors, *more):
                self.users[memory(tensor)].append((i, tensor))
        self.values: dict[int, Tensor] = {}  # memory -> bool, for each place in it
        self.made: set[Hashable] = set()  # (role, entry) of what is computed of several vectors

    def shared(self, tensor: Tensor) -> bool:
        """Whether places of its memory are used more than once."""
        return len(self.users[memory(tensor)]) > 1 or repeats(tensor)

    def users_of(self, tensor: Tensor) -> list[int]:
        """The records that use any of its values."""
        users = self.users[memory(tensor)]
        at = places(tensor).flatten() if len(users) > 1 else None
        found = (i for i, t in users if at is None or bool(torch.isin(places(t), at).any()))
        return list(dict.fromkeys(found))

    def new(self, tensor: Tensor, wanted: Tensor) -> Tensor:
        """Of a tensor's values that are `wanted`, bool and as large, those not stored yet."""
        if not self.shared(tensor):
            return wanted
        at = places(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        stored = self.values.setdefault(memory(tensor), torch.zeros(size, dtype=torch.bool))
        new = wanted & ~stored[at]
        found = at[new]
        if repeats(tensor):  # a place that occurs twice is one value
            order = torch.arange(len(found))
            first = torch.full((size,), len(found)).scatter_reduce(0, found, order, "amin")
            new[new.clone()] = first[found] == order
        stored[found] = True
        return new

    def new_entries(self, role: str, vectors: Vectors, wanted: Tensor) -> int:
        """The number of `wanted` entries, bool (c,), not stored yet of what is made of vectors, for
        one of several roles that it is made for."""
        given = [vector for vector in vectors if vector is not None]
        if not all(map(self.shared, given)):
            return int(wanted.sum())
        pairs = zip(entries(vectors), wanted.tolist(), strict=True)
        new = {(role, entry) for entry, needed in pairs if needed} - self.made
        self.made |= new
        return len(new)
