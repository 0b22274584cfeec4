"""One forward pass of a network, written down as a list of records.

The network's own `forward` runs under a dispatch mode, so functional calls count as much as
modules; forward hooks only say which module is at work. Parameters and input are shapes without
memory (`meta` tensors) where the network allows it, which makes the pass a matter of milliseconds;
each carries a `Tag` with what is known about it.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from data.errors import UserError
from model_scoring import liveness
from model_scoring.operations import FACTORIES, FOLLOWED, KINDS, MOVES, plain_name
from model_scoring.weights import Weights, examine

UNKNOWN = "unknown"
STORED = "stored"  # a parameter that only takes part in a copy


@dataclass(frozen=True)
class Record:
    """One operation of the forward pass. Shapes include the batch dimension of 1."""

    name: str
    kind: str  # as in operations.KINDS, or UNKNOWN or STORED
    operation: str  # PyTorch's name for it
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    inputs: tuple[int, ...]  # records whose results it uses; copies are seen through
    parameters: tuple[str, ...] = ()
    stored: int = 0  # values in those parameters, 0 if an earlier record has them
    weight: Tensor | None = None  # convolutions and linear layers: (c_out, c_in / groups, ...)
    weights: Weights | None = None  # the same, counted
    bias: bool = False
    zero_inputs: Tensor | None = None  # bool (c_in,): channels that are 0 for every image
    constants: Tensor | None = None  # (c_out,) see liveness; None: no channel is constant
    window: int = 1  # pooling: input elements per output element; matmul: length of the products

    @property
    def shared(self) -> bool:
        """Its weights are stored with an earlier record."""
        return bool(self.parameters) and self.stored == 0


@dataclass(frozen=True)
class Trace:
    """The forward pass of a network."""

    records: list[Record]
    outputs: frozenset[int]  # records whose results leave the network
    unused: tuple[str, ...]  # parameters the pass never touches

    @property
    def unknown(self) -> dict[str, int]:
        """Operations without a rule and how often they occur."""
        return dict(Counter(r.operation for r in self.records if r.kind == UNKNOWN))


@dataclass
class Tag:
    """What is known of a tensor during the pass."""

    from_image: bool = True  # False: made of parameters and constants only, so precomputed
    producers: frozenset[int] = frozenset()
    parameters: frozenset[str] = frozenset()
    value: Tensor | None = None  # numbers, if it does not depend on the image
    constants: Tensor | None = None
    writes: int = 0  # in-place operations on any tensor before it was tagged


def tag_of(tensor: Tensor) -> Tag:
    return getattr(tensor, "_scoring_tag", None) or Tag()


def _set_tag(tensor: Tensor, tag: Tag) -> None:
    tensor._scoring_tag = tag


@dataclass
class _Recorder(TorchDispatchMode):
    """Sees every operation of the pass."""

    names: dict[nn.Module, str]
    sizes: dict[str, int]  # elements of each parameter
    records: list[Record] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.taken: Counter[str] = Counter()
        self.owned: set[str] = set()
        self.written: dict[int, Tag] = {}  # memory an image was written to -> the last write
        self.writes = 0

    def __hash__(self) -> int:
        return id(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, plain_name(func)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        tags = [self._tag(t) for t in inputs]  # before an in-place operation changes them
        if name in FACTORIES:
            tags = []
        shape = tuple(inputs[0].shape) if inputs else ()
        constants = None
        if any(tag.from_image for tag in tags):
            constants = self._constants(func, name, args, kwargs, tags)
        if func._schema.is_mutable:
            self.writes += 1
        result = func(*args, **kwargs)
        self._note(func, name, args, kwargs, tags, shape, constants, result)
        return result

    def _tag(self, tensor: Tensor) -> Tag:
        """A tensor's tag, unless its memory was written to through another view of it."""
        tag = tag_of(tensor)
        write = self.written.get(tensor.untyped_storage()._cdata)
        if write is None or write.writes <= tag.writes:
            return tag
        return Tag(producers=tag.producers | write.producers, parameters=tag.parameters)

    def _constants(self, func, name, args, kwargs, tags) -> list[Tensor | None]:
        """Constant channels of each output of an operation that is neither layer nor BatchNorm."""
        known = any(t.from_image and t.constants is not None for t in tags)
        pads = args[1] if len(args) > 1 else None
        if name not in FOLLOWED or not (known or liveness.changes_channels(name, pads)):
            return []

        def real(leaf: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            tag = self._tag(leaf)
            if tag.value is not None:
                return tag.value.clone()  # the operation may be in-place
            return liveness.marked(leaf.shape, tag.constants)

        values, options = tree_map(real, (args, kwargs))
        return liveness.through(lambda: func(*values, **options))

    def _note(self, func, name, args, kwargs, tags, shape, constants, result) -> None:
        """Tag the outputs of an operation and record it if it costs something."""
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        parameters = frozenset().union(*(t.parameters for t in tags))
        if not any(tag.from_image for tag in tags):
            self._precompute(func, args, kwargs, tags, parameters, outputs)
            return
        tag = Tag(producers=frozenset().union(*(t.producers for t in tags if t.from_image)))
        kind = None if name in MOVES else KINDS.get(name, UNKNOWN)
        if kind is None:
            for parameter in sorted(parameters - self.owned):
                self._store(parameter)
        else:
            record = self._record(kind, name, args, tags, shape, outputs, constants, parameters)
            tag.producers = frozenset({len(self.records)})
            constants = [record.constants] if record.weights or kind == "batchnorm" else constants
            self.records.append(record)
        padded = [*(constants or []), *([None] * len(outputs))]
        for output, vector in zip(outputs, padded, strict=False):
            new = Tag(True, tag.producers, frozenset(), None, vector, self.writes)
            _set_tag(output, new)
            if func._schema.is_mutable:
                self.written[output.untyped_storage()._cdata] = new

    def _precompute(self, func, args, kwargs, tags, parameters, outputs) -> None:
        """An operation on stored values alone: its result is known before any image comes."""
        value = None
        known = tags and all(tag.value is not None for tag in tags)
        if known and not func._schema.is_mutable:  # the network's own weights stay as they are
            real = tree_map(lambda a: tag_of(a).value if isinstance(a, Tensor) else a, args)
            options = {k: v for k, v in kwargs.items() if k != "device"}
            value = func(*real, **options)
        values = [t for t in tree_leaves(value) if isinstance(t, Tensor)] or [None] * len(outputs)
        for output, number in zip(outputs, values, strict=False):
            _set_tag(output, Tag(False, frozenset(), parameters, number, None, self.writes))

    def _store(self, parameter: str) -> None:
        size = self.sizes[parameter]
        self.owned.add(parameter)
        self.records.append(
            Record(parameter, STORED, "parameter", (size,), (size,), (), (parameter,), size)
        )

    def _record(self, kind, name, args, tags, shape, outputs, constants, parameters) -> Record:
        common = {
            "kind": kind,
            "operation": name,
            "in_shape": shape,
            "out_shape": tuple(outputs[0].shape) if outputs else (),
            "inputs": tuple(sorted(frozenset().union(*(t.producers for t in tags)))),
            "parameters": tuple(sorted(parameters)),
            "stored": sum(self.sizes[p] for p in parameters - self.owned),
            "constants": constants[0] if constants else None,
        }
        self.owned |= parameters
        common |= SPECIAL.get(name, _plain)(args, common) or {}
        return Record(name=self._name(common), **common)

    def _name(self, record: dict) -> str:
        """The layer's name, or the module at work and the kind; numbered where not unique."""
        layers = {p.rpartition(".")[0] for p in record["parameters"]}
        module = self.stack[-1] if self.stack else None
        name = self.names.get(module, "")
        if len(layers) == 1:
            name = layers.pop() or name
        elif module is None or next(module.children(), None) is not None or not name:
            label = record["operation"] if record["kind"] == UNKNOWN else record["kind"]
            name = f"{name}.{label}".lstrip(".")
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}#{self.taken[name]}"


def _plain(args: tuple, record: dict) -> dict:
    return {}


def _layer(weight: Tensor, bias: Tensor | None, source: Tag, *, groups: int, padded: bool) -> dict:
    """Fields of a convolution or linear layer. weight: (c_out, c_in / groups, ...)."""
    numbers = None if bias is None else tag_of(bias).value
    zeros = None if source.constants is None else source.constants == 0
    weights = examine(weight, groups)
    return {
        "weight": weight,
        "weights": weights,
        "bias": bias is not None,
        "zero_inputs": zeros if zeros is not None and bool(zeros.any()) else None,
        "constants": liveness.of_filters(
            weight, weights.counts, numbers, source.constants, padded=padded
        ),
    }


def _convolution(args: tuple, record: dict) -> dict:
    x, weight, bias, _, padding, _, transposed, _, groups = args
    value = tag_of(weight).value
    if transposed or value is None:
        return {"kind": UNKNOWN, "operation": "transposed convolution" if transposed else "conv"}
    return _layer(value, bias, tag_of(x), groups=groups, padded=any(padding))


def _linear(args: tuple, record: dict) -> dict:
    *bias, x, weight = args
    value = tag_of(weight).value
    if value is None:  # both operands depend on the image
        return {"kind": "matmul", "window": weight.shape[0], "constants": None}
    fields = _layer(value.t(), bias[0] if bias else None, tag_of(x), groups=1, padded=False)
    return fields | {"in_shape": tuple(x.shape)}


def _matmul(args: tuple, record: dict) -> dict:
    return {"window": args[-1].shape[-2]}


def _batchnorm(args: tuple, record: dict) -> dict:
    x, *state = args[:5]
    eps = next(a for a in reversed(args) if isinstance(a, float))
    values = [None if t is None else tag_of(t).value for t in state]
    return {
        "constants": liveness.of_batchnorm(tag_of(x).constants, x.shape[1], values, eps),
    }


def _pool(args: tuple, record: dict) -> dict:
    size = args[1] if len(args) > 1 else None
    if record["operation"] in ("max_pool2d_with_indices", "avg_pool2d"):
        return {"window": math.prod(size) if len(size) > 1 else size[0] ** 2}
    return {"window": math.prod(record["in_shape"]) // max(1, math.prod(record["out_shape"]))}


SPECIAL = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "bmm": _matmul,
    "baddbmm": _matmul,
    **{name: _batchnorm for name, kind in KINDS.items() if kind == "batchnorm"},
    **{name: _pool for name, kind in KINDS.items() if kind in ("avgpool", "maxpool", "sum")},
}


@contextmanager
def _watching(recorder: _Recorder, network: nn.Module) -> Iterator[None]:
    """Keep the recorder's stack of modules at work."""
    with ExitStack() as stack:
        for module in network.modules():
            before = module.register_forward_pre_hook(lambda m, _: recorder.stack.append(m))
            after = module.register_forward_hook(lambda m, *_: recorder.stack.pop() and None)
            stack.callback(before.remove)
            stack.callback(after.remove)
        was_training = [m for m in network.modules() if m.training]
        stack.callback(lambda: [setattr(m, "training", True) for m in was_training])
        stack.callback(torch.backends.mha.set_fastpath_enabled, True)
        torch.backends.mha.set_fastpath_enabled(False)  # attention as its single operations
        network.eval()
        yield


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Trace:
    parameters = dict(network.named_parameters())
    recorder = _Recorder(
        names={module: name for name, module in network.named_modules()},
        sizes={name: p.numel() for name, p in parameters.items()},
    )
    state = {}
    for name, tensor in {**parameters, **dict(network.named_buffers())}.items():
        state[name] = tensor.detach().to(device, copy=True)
        owner = frozenset({name} if name in parameters else ())
        _set_tag(state[name], Tag(False, frozenset(), owner, tensor.detach().cpu(), None))
    image = torch.zeros((1, *shape), device=device)
    with ExitStack() as stack:
        contexts = torch.no_grad(), _watching(recorder, network), sdpa_kernel(SDPBackend.MATH)
        for context in (*contexts, torch.device(device), recorder):
            stack.enter_context(context)
        output = functional_call(network, state, (image,))
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    return Trace(
        records=recorder.records,
        outputs=frozenset().union(*(tag_of(t).producers for t in leaves)),
        unused=tuple(sorted(set(parameters) - recorder.owned)),
    )


def trace(network: nn.Module, shape: tuple[int, int, int]) -> Trace:
    """Records of one forward pass in evaluation mode of an image of (channels, height, width).

    Raises UserError if the network cannot take such an image.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # thousands of tiny operations: threads would only wait
        return _run(network, shape, torch.device("meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        pass  # e.g. a branch on a value: this needs numbers, the pass below has them
    finally:
        torch.set_num_threads(threads)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        return _run(network, shape, device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the network cannot take {shape[0]} channels of {shape[1]}x{shape[2]} pixels "
            f"({reason}): choose another --image-size"
        ) from None
