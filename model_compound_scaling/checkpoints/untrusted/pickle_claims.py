"""What a checkpoint's pickle claims, found out without torch, its tensors or their memory.

torch's own `weights_only` unpickler runs no foreign code, but it allocates what it is told to: it
calls bytearray(10**12) and torch.UntypedStorage(10**12), copies one tuple a million times, makes
expanded tensors and, in the legacy format, storages of any size. Fake tensors change the last two
only. So the pickle is first unpickled with stand-ins, which check and count instead of computing;
only what state dicts and optimizers need can be named."""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

COPY_LIMIT = 10_000_000  # items copied by constructors: a small pickle could ask for terabytes

# what torch.save(pickle_protocol=2) writes and weights_only reads
OPCODES = {
    *("PROTO", "STOP", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "MARK"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET"),
}
# fmt: off
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
}
# fmt: on


class Refused(Exception):
    """Why a file is not loaded: a clause whose subject is the file."""


class Storage(NamedTuple):
    """A stand-in for a tensor's memory: the file's name for it, bytes, bytes of an element."""

    key: str
    size: int
    item_size: int


class _Tensor(NamedTuple):
    """A stand-in for a tensor, which needs no values here."""

    storage: Storage


def claims(pickled: bytes) -> list[Storage]:
    """The storages that a pickle asks for, each once. Raises Refused for anything a checkpoint
    does not need, and for tensors larger than their storages."""
    # Python's fast unpickler allocates what some instructions claim; they must not reach it
    named = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in OPCODES:
            raise Refused(
                f"holds Python objects{named} or is no checkpoint (pickle instruction "
                f"{opcode.name}); save its state_dict() with torch.save instead"
            )
        if opcode.name == "GLOBAL":
            named = f" ({argument.replace(' ', '.')[:80]})"
        if opcode.name == "LONG_BINPUT" and argument > len(pickled):
            raise Refused("is damaged: its pickle numbers more objects than it holds")
    census = _Census(pickled)
    try:
        census.load()
    except Refused:
        raise
    # damaged pickles fail in as many ways as there are operations
    except Exception as error:
        raise Refused(f"is damaged or no checkpoint ({type(error).__name__}: {error})") from None
    return list(census.storages.values())


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise Refused(f"is damaged: a size or offset in it is {str(value)[:20]}")
    return value


class _Census(pickle.Unpickler):
    """Collects the storages. What it hands out are bound methods and named tuples: a pickle's BUILD
    instruction can change neither."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self.copied = 0
        self.globals: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): self._mapping,
            ("collections", "Counter"): self._mapping,
            ("builtins", "set"): self._sequence,
            ("torch", "Size"): self._sequence,
            ("torch", "device"): self._device,
            ("_codecs", "encode"): self._encode,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._typed_tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }

    def find_class(self, module: str, name: str) -> object:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) in self.globals:
            return self.globals[module, name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise Refused(
            f"holds Python objects ({module}.{name}), which may run code when loaded; "
            "save its state_dict() instead"
        )

    def persistent_load(self, pid: object) -> Storage:
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise Refused("is damaged: a tensor's memory is not described as such")
        storage = Storage(key, _natural(numel) * dtype.itemsize, dtype.itemsize)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise Refused(f"claims two sizes for tensor {key}")
        if view and view[0] is not None:
            _, offset, length = view[0]
            if _natural(offset) + _natural(length) > numel:
                raise Refused(f"claims more of tensor {key} than there is")
            return storage._replace(size=length * dtype.itemsize)
        return storage

    def _count(self, items: int) -> None:
        self.copied += items
        if self.copied > COPY_LIMIT:
            raise Refused(f"asks for more than {COPY_LIMIT:,} copied objects")

    def _mapping(self, *pairs: Collection) -> OrderedDict:
        self._count(sum(map(len, pairs)))
        return OrderedDict(*pairs)

    def _sequence(self, items: Collection = ()) -> tuple:
        self._count(len(items))
        return tuple(items)

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 2's pickles hold bytes."""
        self._count(len(text))
        if encoding != "latin1":
            raise Refused(f"holds Python objects (text in the encoding {encoding!r})")
        return text.encode("latin1")

    def _device(self, *_: object) -> None:
        """A device is a name here; everything is loaded to the CPU."""

    def _tensor(
        self, storage: Storage, offset: int, size: tuple, stride: tuple, *_: object, dtype=None
    ) -> _Tensor:
        """A tensor's elements, and the last one's place, must be within its storage; torch would
        enlarge it. Expanded tensors (stride 0) would be as large as they claim when copied."""
        if type(storage) is not Storage:
            raise Refused("is damaged: a tensor in it has no memory")
        shape = list(map(_natural, size))
        last = sum(max(n - 1, 0) * _natural(s) for n, s in zip(shape, stride, strict=True))
        count = math.prod(shape)
        held = storage.size // (dtype.itemsize if dtype else storage.item_size)
        if count > held or (count and _natural(offset) + last >= held):
            raise Refused(
                f"claims a tensor of {' x '.join(map(str, shape))[:60]} elements for which tensor "
                f"{storage.key} holds {held:,}; save contiguous tensors"
            )
        return _Tensor(storage)

    def _typed_tensor(self, *arguments: object) -> _Tensor:
        """Untyped storage, offset, size, stride, requires_grad, hooks, dtype, ..."""
        return self._tensor(*arguments[:4], dtype=arguments[6])

    def _parameter(self, data: _Tensor, *_: object) -> _Tensor:
        if type(data) is not _Tensor:
            raise Refused("is damaged: a parameter in it is no tensor")
        return data
