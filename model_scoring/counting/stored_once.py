"""Which values are stored already: what several operations share counts once, with the first."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from model_scoring.tracing.operation_record import Record
from model_scoring.tracing.stored_values import identity, memory


def key(*tensors: Tensor | None) -> tuple[Hashable, ...]:
    """Equal for the same tensors, whatever object stands for them."""
    return tuple(map(identity, tensors))


class StoredOnce:
    """What the records counted so far store."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.users: dict[int, list[int]] = defaultdict(list)  # memory -> records, by position
        for i, record in enumerate(records):
            for tensor in record.tensors:
                self.users[memory(tensor)].append(i)
        self.values: dict[int, Tensor] = {}  # memory -> bool, for each place in it
        self.vectors: dict[Hashable, Tensor] = {}

    def shared(self, tensor: Tensor) -> bool:
        """Whether its memory is used more than once."""
        return len(self.users[memory(tensor)]) > 1

    def new(self, tensor: Tensor, wanted: Tensor) -> Tensor:
        """Of a tensor's values that are `wanted`, bool and as large, those not stored yet."""
        if not self.shared(tensor):
            return wanted
        places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
        stored = self.values.setdefault(memory(tensor), torch.zeros_like(places, dtype=torch.bool))
        places = places.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        new = wanted & ~stored[places]
        stored[places[new]] = True
        return new

    def new_entries(self, key: Hashable, wanted: Tensor) -> int:
        """Of a vector that is known by a key, the number of `wanted` entries not stored yet."""
        stored = self.vectors.get(key, torch.zeros_like(wanted))
        self.vectors[key] = stored | wanted
        return int((wanted & ~stored).sum())
