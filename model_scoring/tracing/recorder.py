"""The dispatch mode that writes a forward pass down, operation by operation.

Functional calls count as much as modules; forward hooks only say which module is at work. Tensors
carry a `Tag` with what is known about them: constants and labels of their channels ride along.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from model_compound_scaling.networks.narrowing import NARROWINGS
from model_scoring.tracing.aten_operations import FACTORIES, OPERATIONS, Operation, plain_name
from model_scoring.tracing.channel_labels import Labels
from model_scoring.tracing.channel_rules import RULES, Call, Caller, Shape
from model_scoring.tracing.layer_records import SPECIAL, plain, vector
from model_scoring.tracing.operation_record import (
    STORED,
    UNKNOWN,
    Channels,
    Padding,
    Record,
    Tag,
    set_tag,
    tag_of,
)

TRANSPOSES = ("t", "transpose")
NO_RULE = Operation(UNKNOWN)


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
class Recorder(TorchDispatchMode):
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
        tags = [self.tag(t) for t in inputs]  # before an in-place operation changes them
        shape = tuple(inputs[0].shape) if inputs else ()
        arguments = dict(zip(_argument_names(func), args, strict=False)) | kwargs
        layer = self._layer(tags)
        call = Call(func, name, args, kwargs, arguments, inputs, tags, self.caller, layer)
        if name not in TRANSPOSES:
            self.uses.update(tag.source for tag in tags if tag.source)
        self.writes += func._schema.is_mutable
        # bookkeeping is not the network's: no function mode sees it
        with torch._C.DisableTorchFunction():
            result = _shaped(call) if inputs and inputs[0].is_meta else func(*args, **kwargs)
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            if name in FACTORIES or not any(tag.from_image for tag in tags):
                self._precompute(call, outputs)
            else:
                self._note(call, outputs, shape)
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

    def tag(self, tensor: Tensor) -> Tag:
        """A tensor's tag, unless its memory was written to through another view of it."""
        tag = tag_of(tensor)
        write = self.written.get(tensor.untyped_storage()._cdata)
        if write is None or write.writes <= tag.writes:
            return tag
        known = [t.channels for t in (tag, write) if t.channels is not None]
        for channels in known:  # part of one may now be part of the other
            self.labels.pin(channels.labels)
        producers = tag.producers | write.producers
        channels = tag.channels and Channels.varying(tag.channels.labels)
        return Tag(producers=producers, parameters=tag.parameters, channels=channels)

    def _precompute(self, call: Call, outputs: list[Tensor]) -> None:
        """An operation on stored values alone: its result is known before any image comes."""
        tags = [] if call.name in FACTORIES else call.tags
        parameters = frozenset().union(*(tag.parameters for tag in tags))
        known = tags and all(tag.value is not None for tag in tags)
        value = None
        if known and not call.function._schema.is_mutable:  # the network's weights stay as they are
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
        operation, shapes = OPERATIONS.get(call.name, NO_RULE), [tuple(t.shape) for t in outputs]
        parameters = frozenset().union(*(tag.parameters for tag in call.tags))
        fields = {}
        if operation.kind is None:
            for parameter in sorted(parameters - self.owned):
                size = self.sizes[parameter]
                self.records.append(Record(parameter, STORED, "parameter", (size,), (size,), (),
                                           (parameter,), size))  # fmt: skip
            self.owned |= parameters
        elif shapes:
            fields = SPECIAL.get(call.name, plain)(call, shapes[0], self.labels, self.tag)
        channels = self._channels(call, operation, fields, shapes)
        images = [tag for tag in call.tags if tag.from_image]
        producers = frozenset().union(*(tag.producers for tag in images))
        if operation.kind is not None:
            fields = {
                "kind": operation.kind,
                "operation": call.name,
                "in_shape": shape,
                "out_shape": shapes[0] if shapes else (),
                "inputs": tuple(sorted(frozenset().union(*(t.producers for t in call.tags)))),
                "parameters": tuple(sorted(parameters)),
                "stored": sum(self.sizes[p] for p in parameters - self.owned),
                "labels": vector(channels[0].labels, shapes[0]) if shapes else None,
                "constants": vector(channels[0].constants, shapes[0]) if shapes else None,
            } | fields
            producers = frozenset({len(self.records)})
            self.owned |= parameters
            self.records.append(Record(name=self._name(fields), **fields))
        for output, known in zip(outputs, channels, strict=True):
            new = Tag(True, producers, frozenset(), None, known, "", self.writes)
            set_tag(output, new)
            if call.function._schema.is_mutable:
                self.written[output.untyped_storage()._cdata] = new

    def _channels(
        self, call: Call, operation: Operation, fields: dict, shapes: list[Shape]
    ) -> list[Channels]:
        """The channels of each output. Where no rule applies, all that are seen stay."""
        if fields.get("labels") is not None:  # a layer's
            spread = [1, -1, *[1] * (len(shapes[0]) - 2)]
            parts = (fields[name].reshape(spread) for name in ("labels", "constants"))
            return [Channels(*parts)] * len(shapes)
        rule = RULES.get(operation.way)
        known = rule(call, shapes, self.labels) if rule else None
        seen = [tag.channels.labels for tag in call.tags if tag.channels is not None]
        if known is None:
            for labels in seen:
                self.labels.pin(labels)
            new = (self.labels.new(s[1] if len(s) > 1 else 1, max(len(s), 1), pinned=True)
                   for s in shapes)  # fmt: skip
            return [Channels.varying(labels) for labels in new]
        if call.name == "constant_pad_nd" and seen[0].shape != known[0].labels.shape:
            ends = (labels.flatten() for labels in (seen[0], known[0].labels))
            self.paddings.append(Padding(call.layer, *ends))
        return known

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
            own = [
                p.startswith(f"{record.layer}.") and self.uses[p] == 1 for p in record.parameters
            ]
            if record.labels is None or not own or (record.layer and all(own)):
                continue
            self.labels.pin(record.labels)
            if record.reads:
                self.labels.pin(record.reads.labels)
            self.records[i] = replace(record, layer="")
