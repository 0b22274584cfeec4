"""A network's own code in float64, whatever types it names."""

from types import TracebackType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

EXACT = torch.float64


class Float64(TorchDispatchMode):
    """Makes float64 of float32 where operations name or create it, and of the smaller ones among
    floating-point operands of several types. Casts to 16 bits still round."""

    def __enter__(self) -> "Float64":
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(EXACT)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.set_default_dtype(self.before)
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = EXACT
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        dtypes = {t.dtype for t in operands if t.is_floating_point()}
        if EXACT in dtypes and len(dtypes) > 1 and not func._schema.is_mutable:
            args, kwargs = tree_map(_exact, (args, kwargs))
        return func(*args, **kwargs)


def _exact(leaf: object) -> object:
    return leaf.to(EXACT) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
