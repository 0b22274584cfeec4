"""One forward pass of a network, written down as a list of records.

The network's own `forward` runs under a dispatch mode, so functional calls count as much as
modules; forward hooks only say which module is at work. Parameters and input are shapes without
memory (`meta` tensors) where the network allows it, which makes the pass a matter of milliseconds;
each carries a `Tag` with what is known about it.
"""

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
from model_scoring.tracing import constant_channels, layer_records
from model_scoring.tracing.aten_operations import FACTORIES, FOLLOWED, KINDS, MOVES, plain_name
from model_scoring.tracing.operation_record import (
    STORED,
    UNKNOWN,
    Record,
    Tag,
    Trace,
    set_tag,
    tag_of,
)


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

    def leave(self) -> None:
        """A module's forward has ended."""
        self.stack.pop()

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
        if name not in FOLLOWED or not (known or constant_channels.changes_channels(name, pads)):
            return []

        def real(leaf: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            tag = self._tag(leaf)
            if tag.value is not None:
                return tag.value.clone()  # the operation may be in-place
            return constant_channels.marked(leaf.shape, tag.constants)

        values, options = tree_map(real, (args, kwargs))
        return constant_channels.through(lambda: func(*values, **options))

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
            set_tag(output, new)
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
            set_tag(output, Tag(False, frozenset(), parameters, number, None, self.writes))

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
        common |= layer_records.SPECIAL.get(name, layer_records.plain)(args, common, self._tag)
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


@contextmanager
def _watching(recorder: _Recorder, network: nn.Module) -> Iterator[None]:
    """Keep the recorder's stack of modules at work."""
    with ExitStack() as stack:
        for module in network.modules():
            before = module.register_forward_pre_hook(lambda m, _: recorder.stack.append(m))
            after = module.register_forward_hook(lambda *_: recorder.leave())
            stack.callback(before.remove)
            stack.callback(after.remove)
        was_training = [m for m in network.modules() if m.training]
        stack.callback(lambda: [setattr(m, "training", True) for m in was_training])
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # attention as its single operations
        network.eval()
        yield


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those of a module once, by its first name."""
    for prefix, module in network.named_modules():
        yield from module.named_parameters(prefix, recurse=False)
        yield from module.named_buffers(prefix, recurse=False)


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Trace:
    parameters = dict(network.named_parameters())
    recorder = _Recorder(
        names={module: name for name, module in network.named_modules()},
        sizes={name: p.numel() for name, p in parameters.items()},
    )
    state, first = {}, {}
    for name, tensor in _tensors(network):
        if (same := first.setdefault(id(tensor), name)) != name:
            state[name] = state[same]  # tied weights
            continue
        state[name] = tensor.detach().to(device, copy=True)
        owner = frozenset({name} if name in parameters else ())
        set_tag(state[name], Tag(False, frozenset(), owner, tensor.detach().cpu(), None))
    image = torch.zeros((1, *shape), device=device)
    with ExitStack() as stack:
        contexts = torch.no_grad(), _watching(recorder, network), sdpa_kernel(SDPBackend.MATH)
        for context in (*contexts, torch.device(device), recorder):
            stack.enter_context(context)
        # ties are in the state: of a module that is called twice, torch would restore the copy
        output = functional_call(network, state, (image,), tie_weights=False)
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    return Trace(
        records=recorder.records,
        outputs=frozenset().union(*(tag_of(t).producers for t in leaves)),
        unused=tuple(sorted(set(parameters) - recorder.owned)),
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """For thousands of tiny operations, where threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trace(network: nn.Module, shape: tuple[int, int, int]) -> Trace:
    """Records of one forward pass in evaluation mode of an image of (channels, height, width).

    Raises UserError if the network cannot take such an image.
    """
    try:
        with one_thread():
            return _run(network, shape, torch.device("meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        pass  # e.g. a branch on a value: this needs numbers, the pass below has them
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        return _run(network, shape, device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the network cannot take {shape[0]} channels of {shape[1]}x{shape[2]} pixels "
            f"({reason}): choose another --image-size"
        ) from None
