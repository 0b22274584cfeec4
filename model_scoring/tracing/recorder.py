"""One forward pass of a network, written down as a list of records.

The network's own `forward` runs under a dispatch mode, so functional calls count as much as
modules; forward hooks only say which module is at work. Parameters and input are shapes without
memory (`meta` tensors) where the network allows it, which makes the pass a matter of milliseconds;
each carries a `Tag` with what is known about it: constants and labels of its channels ride along.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from data.errors import UserError
from model_compound_scaling.networks.narrowing import NARROWINGS
from model_scoring.tracing.aten_operations import FACTORIES, OPERATIONS, Operation, plain_name
from model_scoring.tracing.channel_labels import Labels, Width
from model_scoring.tracing.channel_rules import RULES, Call, Caller, Shape, differing
from model_scoring.tracing.layer_records import SPECIAL, channels_of, plain, vector
from model_scoring.tracing.operation_record import (
    STORED,
    UNKNOWN,
    Channels,
    Padding,
    Record,
    Tag,
    Trace,
    set_tag,
    tag_of,
)

TRANSPOSES = ("t", "transpose")
NO_RULE = Operation(UNKNOWN)
SHAPE = torch.Tensor.shape.__get__


@cache
def _argument_names(function: object) -> tuple[str, ...]:
    return tuple(argument.name for argument in function._schema.arguments)


def _shaped(call: Call) -> object:
    """An operation on shapes; BatchNorm's result has its input's, without the many operations that
    it consists of there."""
    if OPERATIONS.get(call.name, NO_RULE).kind != "batchnorm":
        return call.function(*call.args, **call.kwargs)
    statistics = [call.inputs[0].new_empty(0) for _ in call.function._schema.returns[1:]]
    return (torch.empty_like(call.inputs[0]), *statistics)


@dataclass
class _Recorder(TorchDispatchMode):
    """Sees every operation of the pass."""

    names: dict[nn.Module, str]
    sizes: dict[str, int]  # elements of each parameter
    hooked: set[nn.Module]  # modules with hooks of the user's
    records: list[Record] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)  # modules at work
    labels: Labels = field(default_factory=Labels)
    paddings: list[Padding] = field(default_factory=list)
    caller: Caller = field(default_factory=Caller)

    def __post_init__(self) -> None:
        super().__init__()
        self.taken: Counter[str] = Counter()
        self.owned: set[str] = set()
        self.uses: Counter[str] = Counter()  # of parameters and buffers
        self.written: dict[int, Tag] = {}  # memory an image was written to -> the last write
        self.writes = 0

    def __hash__(self) -> int:
        return id(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, plain_name(func)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        tags = [self._tag(t) for t in inputs]  # before an in-place operation changes them
        shapes = [tuple(t.shape) for t in inputs]
        if name not in TRANSPOSES:
            self.uses.update(tag.source for tag in tags if tag.source)
        if func._schema.is_mutable:
            self.writes += 1
        call = Call(func, name, args, kwargs, {}, inputs, tags, self.caller, self._layer(tags))
        call.arguments.update(zip(_argument_names(func), args, strict=False), **kwargs)
        # bookkeeping is not the network's: no function mode sees it
        with torch._C.DisableTorchFunction():
            result = _shaped(call) if inputs and inputs[0].is_meta else func(*args, **kwargs)
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            if name in FACTORIES or not any(tag.from_image for tag in tags):
                self._precompute(call, outputs)
            else:
                self._note(call, outputs, shapes[0])
        return result

    def leave(self) -> None:
        """A module's forward has ended."""
        self.stack.pop()

    def _layer(self, tags: list[Tag]) -> str:
        """The layer at work, if it is of a kind that can be narrowed and uses tensors of its own
        as they are."""
        module = self.stack[-1] if self.stack else None
        narrow = type(module) in NARROWINGS and module not in self.hooked
        narrow = narrow and all(tag.from_image or tag.source for tag in tags)
        return self.names[module] if narrow else ""

    def _tag(self, tensor: Tensor) -> Tag:
        """A tensor's tag, unless its memory was written to through another view of it."""
        tag = tag_of(tensor)
        write = self.written.get(tensor.untyped_storage()._cdata)
        if write is None or write.writes <= tag.writes:
            return tag
        for known in (tag.channels, write.channels):  # part of one may now be part of the other
            if known is not None:
                self.labels.pin(known.labels)
        channels = tag.channels and replace(tag.channels, constants=None)
        return Tag(producers=tag.producers | write.producers, parameters=tag.parameters,
                   channels=channels)  # fmt: skip

    def _precompute(self, call: Call, outputs: list[Tensor]) -> None:
        """An operation on stored values alone: its result is known before any image comes."""
        tags = [] if call.name in FACTORIES else call.tags
        parameters = frozenset().union(*(tag.parameters for tag in tags))
        mutable, value = call.function._schema.is_mutable, None
        known = tags and all(tag.value is not None for tag in tags)
        if known and not mutable:  # the network's own weights stay as they are
            args = tree_map(lambda a: tag_of(a).value if isinstance(a, Tensor) else a, call.args)
            options = {k: v for k, v in call.kwargs.items() if k != "device"}
            value = call.function(*args, **options)
        values = [t for t in tree_leaves(value) if isinstance(t, Tensor)] or [None] * len(outputs)
        turned = tags[0].source if call.name in TRANSPOSES else ""
        for output, number in zip(outputs, values, strict=False):
            tag = Tag(False, frozenset(), parameters, number, None, turned, self.writes)
            set_tag(output, tag)

    def _note(self, call: Call, outputs: list[Tensor], shape: Shape) -> None:
        """Record an operation that costs something, and tag its outputs."""
        operation = OPERATIONS.get(call.name, NO_RULE)
        shapes = [tuple(t.shape) for t in outputs]
        images = [tag for tag in call.tags if tag.from_image]
        producers = frozenset().union(*(tag.producers for tag in images))
        parameters = frozenset().union(*(tag.parameters for tag in call.tags))
        fields = {}
        if operation.kind is None:
            for parameter in sorted(parameters - self.owned):
                self._store(parameter)
        elif shapes:
            special = SPECIAL.get(call.name, plain)
            fields = special(call, shapes[0], self.labels, self._tag)
        channels = self._channels(call, operation, fields, shapes)
        if operation.kind is not None:
            producers = frozenset({len(self.records)})
            self._record(call, operation.kind, fields, shape, shapes, parameters, channels)
        for output, known in zip(outputs, channels, strict=True):
            new = Tag(True, producers, frozenset(), None, known, "", self.writes)
            set_tag(output, new)
            if call.function._schema.is_mutable:
                self.written[output.untyped_storage()._cdata] = new

    def _channels(
        self, call: Call, operation: Operation, fields: dict, shapes: list[Shape]
    ) -> list[Channels]:
        """The channels of each output. Where no rule applies, all that are seen stay."""
        known = None
        if fields.get("labels") is not None:
            known = [channels_of(fields, len(shapes[0]))] * len(shapes)
        elif operation.way in RULES:
            known = RULES[operation.way](call, shapes, self.labels)
        if known is None:
            for tag in call.tags:
                if tag.channels is not None:
                    self.labels.pin(tag.channels.labels)
            return [
                Channels(self.labels.new(s[1] if len(s) > 1 else 1, max(len(s), 1), pinned=True))
                for s in shapes
            ]
        if call.name == "constant_pad_nd":
            before = next(tag.channels for tag in call.tags if tag.from_image)
            if before.labels.shape != known[0].labels.shape:
                ends = (c.labels.flatten() for c in (before, known[0]))
                self.paddings.append(Padding(call.layer, *ends))
        return known

    def _store(self, parameter: str) -> None:
        size = self.sizes[parameter]
        self.owned.add(parameter)
        self.records.append(
            Record(parameter, STORED, "parameter", (size,), (size,), (), (parameter,), size)
        )

    def _record(
        self,
        call: Call,
        kind: str,
        fields: dict,
        shape: Shape,
        shapes: list[Shape],
        parameters: frozenset[str],
        channels: list[Channels],
    ) -> None:
        common = {
            "kind": kind,
            "operation": call.name,
            "in_shape": shape,
            "out_shape": shapes[0] if shapes else (),
            "inputs": tuple(sorted(frozenset().union(*(t.producers for t in call.tags)))),
            "parameters": tuple(sorted(parameters)),
            "stored": sum(self.sizes[p] for p in parameters - self.owned),
        }
        if channels:
            common["labels"] = vector(channels[0].labels, shapes[0])
            common["constants"] = vector(channels[0].constants, shapes[0])
        self.owned |= parameters
        common |= fields
        self.records.append(Record(name=self._name(common), **common))

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

    def finish(self) -> None:
        """Layers whose tensors have another use, too, or that were called apart from their own
        modules, keep their channels: what is narrowed for one use would break the other."""
        for i, record in enumerate(self.records):
            if record.labels is None or not record.parameters:
                continue
            whole = f"{record.layer}." if record.layer else ""
            alone = whole and all(
                p.startswith(whole) and self.uses[p] == 1 for p in record.parameters
            )
            if not alone:
                self.labels.pin(record.labels)
                if record.reads:
                    self.labels.pin(record.reads.labels)
                self.records[i] = replace(record, layer="")


class _Callers(TorchFunctionMode):
    """Tells the recorder which function of torch's Python interface is at work, and what the
    network's code asks of widths."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == SHAPE or name == "size":
            return self._sizes(args[0], func(*args, **kwargs), *args[1:], *kwargs.values())
        if name not in ("view", "reshape"):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Width):
                    leaf.pin()
        before, self.recorder.caller = self.recorder.caller, Caller(name, args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.caller = before

    def _sizes(self, tensor: Tensor, sizes: object, dim: int | None = None) -> object:
        """Sizes, with those that count channels as a Width."""
        channels = tag_of(tensor).channels
        if channels is None:
            return sizes
        pin = partial(self.recorder.labels.pin, channels.labels)
        counted = differing(channels.labels)
        if dim is not None:
            return Width(sizes, pin) if dim % tensor.dim() in counted else sizes
        return torch.Size(Width(n, pin) if d in counted else n for d, n in enumerate(sizes))


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
        hooked={m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks},
    )
    state, first = {}, {}
    for name, tensor in _tensors(network):
        if (same := first.setdefault(id(tensor), name)) != name:
            state[name] = state[same]  # tied weights
            continue
        state[name] = tensor.detach().to(device, copy=True)
        owner = frozenset({name} if name in parameters else ())
        set_tag(state[name], Tag(False, frozenset(), owner, tensor.detach().cpu(), source=name))
    dtype = next((p.dtype for p in parameters.values() if p.is_floating_point()), torch.float32)
    image = torch.zeros((1, *shape), dtype=dtype, device=device)
    set_tag(image, Tag(channels=Channels(recorder.labels.new(shape[0], 4, pinned=True))))
    with ExitStack() as stack:
        contexts = torch.no_grad(), _watching(recorder, network), sdpa_kernel(SDPBackend.MATH)
        for context in (*contexts, torch.device(device), _Callers(recorder), recorder):
            stack.enter_context(context)
        # ties are in the state: of a module that is called twice, torch would restore the copy
        output = functional_call(network, state, (image,), tie_weights=False)
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    for leaf in leaves:
        if (known := tag_of(leaf).channels) is not None:
            recorder.labels.pin(known.labels)
    recorder.finish()
    return Trace(
        records=recorder.records,
        outputs=frozenset().union(*(tag_of(t).producers for t in leaves)),
        unused=tuple(sorted(set(parameters) - recorder.owned)),
        labels=recorder.labels,
        paddings=tuple(recorder.paddings),
        followed=device.type == "meta",
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
