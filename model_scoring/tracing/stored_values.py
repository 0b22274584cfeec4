"""The numbers behind stored tensors during a pass, whose own tensors may be shapes without memory:
copies of parameters and buffers, what is made of them, and what the network writes to them."""

from collections.abc import Hashable

import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map

from model_scoring.tracing.aten_operations import FACTORIES
from model_scoring.tracing.channel_labels import NAN
from model_scoring.tracing.channel_rules import Call
from model_scoring.tracing.number_ranges import QUANTIZERS, ROUNDINGS, disabled
from model_scoring.tracing.operation_record import tag_of


def memory(tensor: Tensor) -> int:
    """What tensors share that are views of each other."""
    return tensor.untyped_storage()._cdata


def place(tensor: Tensor) -> Hashable:
    """Where its values are, in whatever order: the same for its transpose."""
    return memory(tensor), tensor.storage_offset(), tensor.numel()


def identity(tensor: Tensor | None) -> Hashable:
    """Equal for tensors of the same values in the same order, at the same place in memory."""
    if tensor is None:
        return None
    return memory(tensor), tensor.storage_offset(), tensor.size(), tensor.stride()


class Values:
    """Computes what the network computes of stored values alone. The same of the same is computed
    once, so that it has one place in memory, as its parameters have."""

    def __init__(self, followed: bool) -> None:
        self.followed = followed  # False: numbers in the code may come from the image
        self.copies: dict[int, UntypedStorage] = {}  # of the network's memory, to be written to
        self.results: dict[tuple, tuple[object, list[Tensor]]] = {}

    def copy(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer on the CPU. Tensors that share memory share it here, too."""
        key, *layout = identity(tensor)
        if key not in self.copies:
            self.copies[key] = tensor.untyped_storage().cpu().clone()
        return torch.empty(0, dtype=tensor.dtype).set_(self.copies[key], *layout)

    def of(self, call: Call) -> list[Tensor]:
        """Results of a call; none where they are not known."""
        if any(tag.value is None for tag in call.tags) or not (call.tags or self.followed):
            return []
        tags = getattr(call.function, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags or "rand" in call.name:
            return []
        form = call.name in FACTORIES  # of a tensor whose numbers do not matter
        if call.writes:
            self.results.clear()
            return self._compute(call, form)
        leaves = tree_leaves((call.args, call.kwargs))
        key = (call.function, *(_argument(leaf, form) for leaf in leaves))
        if key not in self.results:
            self.results[key] = leaves, self._compute(call, form)  # keeps what is identified alive
        return self.results[key][1]

    def _compute(self, call: Call, form: bool) -> list[Tensor]:
        args, options = tree_map(
            lambda leaf: tag_of(leaf).value if isinstance(leaf, Tensor) and not form else leaf,
            (call.args, call.kwargs),
        )
        if form or "device" in options:
            options = options | {"device": torch.device("cpu")}
        try:
            result = call.function(*args, **options)
        except (RuntimeError, NotImplementedError):  # not on this machine's CPU
            return []
        if "empty" in call.name:  # whatever is there: not known
            return [torch.full_like(result, NAN)] if result.is_floating_point() else []
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _argument(leaf: object, form: bool) -> object:
    """What makes two arguments the same."""
    if not isinstance(leaf, Tensor):
        return type(leaf), repr(leaf)
    value = tag_of(leaf).value
    return (leaf.shape, leaf.dtype) if form else (value.dtype, identity(value))


def stored_step(call: Call) -> Tensor | None:
    """Of which step a result of stored values may be multiples; the layer whose weights they are
    finds out, see `layer_weights.integers`."""
    if call.name in ROUNDINGS:
        return torch.tensor(10.0 ** -call.arguments.get("decimals", 0))
    if call.name in QUANTIZERS and not disabled(call):
        fused = call.arguments.get("ch_axis") if call.arguments.get("per_row_fake_quant") else None
        scale, axis = call.tag("scale"), call.arguments.get("axis", fused)
        if scale is None or scale.value is None:
            return None if scale else torch.tensor(call.arguments["scale"])
        sizes = [-1 if d == axis else 1 for d in range(call.inputs[0].dim())]
        return scale.value if axis is None else scale.value.reshape(sizes)
    known = next((tag for tag in call.tags if tag.step is not None), None)
    if known is None or not (call.name in ("mul", "div") or known.step.dim() > 1):
        return known and known.step
    if call.name not in ("mul", "div", "t", "transpose", "permute"):
        return known.step
    pairs = zip(call.inputs, call.tags, strict=True)
    rest = iter([known.step if tag is known else tag.value for _, tag in pairs])
    args = tree_map(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, call.args)
    return call.function(*args)
