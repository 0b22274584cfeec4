"""Which values are stored already: what several operations share counts once, with the first."""

from collections import Counter
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from model_scoring.tracing.operation_record import Record

Memory = int


def memory(tensor: Tensor) -> Memory:
    """What tensors share that are views of each other."""
    return tensor.untyped_storage()._cdata


def identity(tensor: Tensor | None) -> Hashable:
    """Equal for tensors of the same values in the same order, at the same place in memory."""
    if tensor is None:
        return None
    return memory(tensor), tensor.storage_offset(), tensor.size(), tensor.stride()


class StoredOnce:
    """What the records counted so far store."""

    def __init__(self, records: Iterable[Record]) -> None:
        tensors = (t for r in records for t in (r.weight, r.bias, *r.stores) if t is not None)
        self.uses = Counter(map(memory, tensors))
        self.values: dict[Memory, Tensor] = {}  # bool, for each place in it
        self.vectors: dict[Hashable, Tensor] = {}

    def new(self, tensor: Tensor, wanted: Tensor) -> Tensor:
        """Of a tensor's values that are `wanted`, bool and as large, those not stored yet."""
        if self.uses[memory(tensor)] < 2:
            return wanted
        places = tensor.untyped_storage().nbytes() // tensor.element_size()
        stored = self.values.setdefault(memory(tensor), torch.zeros(places, dtype=torch.bool))
        layout = tensor.size(), tensor.stride(), tensor.storage_offset()
        places = torch.arange(places).as_strided(*layout)
        new = wanted & ~stored[places]
        stored[places[new]] = True
        return new

    def new_entries(self, key: Hashable, wanted: Tensor) -> int:
        """Of a vector that is known by a key, the number of `wanted` entries not stored yet."""
        stored = self.vectors.setdefault(key, torch.zeros_like(wanted))
        count = int((wanted & ~stored).sum())
        self.vectors[key] = stored | wanted
        return count
