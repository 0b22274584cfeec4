"""The dispatch mode that writes a forward pass down, operation by operation.

Functional calls count as much as modules; forward hooks only say which module is at work. Tensors
carry a `Tag` with what is known about them: constants and labels of their channels ride along.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from model_compound_scaling.networks.logits import tensors
from model_compound_scaling.networks.narrowing import NARROWINGS
from model_compound_scaling.networks.quantizers.layer_inputs import hooks_of, quantize_input
from model_scoring.tracing import number_ranges
from model_scoring.tracing.aten_operations import (
    FACTORIES,
    NO_RULE,
    OPERATIONS,
    PICKS,
    STORED,
    UNKNOWN,
)
from model_scoring.tracing.channel_labels import Channels, Labels
from model_scoring.tracing.channel_rules import RULES, Call, Caller
from model_scoring.tracing.layer_records import LAYERS, Fields, window
from model_scoring.tracing.operation_kinds import kind_of
from model_scoring.tracing.operation_record import Padding, Record, Tag, Trace, tag_of, tagged
from model_scoring.tracing.stored_values import Values, memory, place, stored_step

TRANSPOSES = ("t", "transpose")


class TracingError(Exception):
    """A mistake of these rules, not of the network."""


@cache
def _schema(function: OpOverload) -> tuple[str, list[str], set[str], bool]:
    """Name (aten::relu_ -> relu), arguments, those that only take a result, whether it writes."""
    schema = function._schema
    name = schema.name.rpartition("::")[2].rstrip("_")
    out = {argument.name for argument in schema.arguments if argument.is_out}
    return name, [argument.name for argument in schema.arguments], out, schema.is_mutable


class Recorder(TorchDispatchMode):
    """Sees every operation of the pass."""

    def __init__(self, network: nn.Module, *, followed: bool) -> None:
        super().__init__()
        self.names = {module: name for name, module in network.named_modules()}
        self.unused = {name for name, _ in network.named_parameters()}  # in no record
        # modules with hooks of the user's, which may do anything to what goes in or comes out
        foreign = (any(h is not quantize_input for h in hooks_of(m)) for m in network.modules())
        pairs = zip(network.modules(), foreign, strict=True)
        self.hooked = {m for m, found in pairs if found or m._forward_hooks}
        single = ((n, p.numel() == 1) for n, p in network.named_parameters())
        self.single = {name for name, alone in single if alone}  # as steps of quantizers
        self.stack: list[nn.Module] = []  # modules at work
        self.caller = Caller()
        self.records: list[Record] = []
        self.paddings: list[Padding] = []
        self.labels = Labels()
        # stored tensors that are not registered, and what stands for them: see _adopted
        self.foreign: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        registered = vars(nn.Module())
        held = [v for m in network.modules() for k, v in vars(m).items() if k not in registered]
        tensors_held = (leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor))
        self.attributes = {memory(t) for t in tensors_held if t.layout == torch.strided}
        self.taken: Counter[str] = Counter()  # names of records
        self.uses: Counter[str] = Counter()  # of parameters and buffers
        self.values = Values(followed)
        self.seen: set[Hashable] = set()  # places of weights that a record has
        self.written: dict[int, Tag] = {}  # memory an image was written to -> the last write
        self.writes = 0  # in-place operations so far

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        (name, names, out, writes), kwargs = _schema(func), kwargs or {}
        args, kwargs = self._adopted(args, kwargs)
        options = {k: v for k, v in kwargs.items() if k not in out}
        inputs = [t for t in tree_leaves((args, options)) if isinstance(t, Tensor)]
        # both before an in-place operation changes them
        tags, in_shapes = [self.tag(t) for t in inputs], [tuple(t.shape) for t in inputs]
        if name not in TRANSPOSES:
            self.uses.update(tag.source for tag in tags if tag.source)
        self.writes += writes
        # bookkeeping is not the network's: no function mode sees it
        with torch._C.DisableTorchFunction():
            kind = OPERATIONS.get(name, NO_RULE).kind
            if kind in ("batchnorm", "quantize") and inputs[0].is_meta:
                # as its input: there it has no kernel, or consists of many operations
                others = [inputs[0].new_empty(0) for _ in func._schema.returns[1:]]
                result = (torch.empty_like(inputs[0]), *others)
                result = result if others else result[0]
            else:
                result = func(*args, **kwargs)
            try:  # what fails here is not the network's fault
                outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
                arguments = dict(zip(names, args, strict=False)) | options
                # without `out=`: of the same name, chosen by its arguments
                plain = func.overloadpacket if len(options) < len(kwargs) else func
                if name in FACTORIES:
                    inputs, tags = [], []
                call = Call(plain, name, args, options, arguments, inputs, tags, in_shapes,
                            outputs, writes, self.caller, self._layer(tags), self.labels,
                            self.paddings)  # fmt: skip
                note = self._note if any(tag.from_image for tag in tags) else self._precompute
                note(call)
            except Exception as error:
                reason = f"{name}: {type(error).__name__}: {error}"
                raise TracingError(reason) from error
        return result

    def _adopted(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Arguments with stand-ins for tensors that are neither registered nor made in the pass,
        such as plain attributes of modules: stored, and shapes without memory where others are."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = any(leaf.is_meta for leaf in leaves)
        foreign = [t for t in leaves if not t.is_meta and (shapes or not tagged(t))]
        stand_ins = {id(t): self._stand_in(t, shapes) for t in foreign}
        if not stand_ins:
            return args, kwargs
        return tree_map(lambda leaf: stand_ins.get(id(leaf), leaf), (args, kwargs))

    def _stand_in(self, tensor: Tensor, shapes: bool) -> Tensor:
        """A tagged view of a stored tensor, or its shape alone; itself where it may be an image's:
        code that needs values can make tensors that no operation is seen of."""
        if not (tagged(tensor) or self.values.followed or memory(tensor) in self.attributes):
            return tensor
        key = id(tensor), shapes
        if key not in self.foreign:
            tag = tag_of(tensor)
            if not tagged(tensor):
                numbers = self.values.copy(tensor.detach())
                tag = Tag(False, value=numbers, stores=(numbers,))
            stand_in = tensor.detach().to("meta") if shapes else tensor.detach()
            tag.put(stand_in)
            self.foreign[key] = tensor, stand_in  # keeps what is identified alive
        return self.foreign[key][1]

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
        write = self.written.get(memory(tensor))
        if write is None or write.writes <= tag.writes:
            return tag
        self.labels.pin(tag.channels, write.channels)  # part of one may now be part of the other
        if not (tag.from_image or write.from_image):  # stored, but nobody knows what
            return replace(write, parameters=tag.parameters | write.parameters)
        producers = tag.producers | write.producers
        channels = tag.channels and Channels.varying(tag.channels.labels)
        return Tag(producers=producers, parameters=tag.parameters, channels=channels)

    def _put(self, output: Tensor, call: Call, tag: Tag) -> None:
        tag.put(output)
        if call.writes and tag.value is None:
            self.written[memory(output)] = tag

    def _precompute(self, call: Call) -> None:
        """An operation on stored values alone: its result is known before any image comes."""
        values, unknown = self.values.of(call), [None] * len(call.outputs)
        for output, number in zip(call.outputs, values or unknown, strict=False):
            tag = Tag(
                from_image=False,
                parameters=call.parameters,
                stores=_cheapest(number, _counted(call)),
                value=number,
                adapts=call.name.endswith("_like"),
                step=stored_step(call),
                source=call.tags[0].source if call.name in TRANSPOSES else "",
                writes=self.writes,
            )
            self._put(output, call, tag)

    def _note(self, call: Call) -> None:
        """Record an operation that costs something, and tag its outputs."""
        operation = OPERATIONS.get(call.name, NO_RULE)
        kind, extra = kind_of(call, operation)
        self.unused -= call.parameters
        special, channels = self._channels(call, operation.way)
        producers = frozenset().union(*(tag.producers for tag in call.tags))
        numbers = number_ranges.numbers_of(call, kind, _counted(call))
        if kind is None:
            self._note_copies(call)
        else:
            own = channels[0].within(call.shapes[0]) if channels else None
            if own and ("weight" in special or "state" in special):
                own = own.map(torch.flatten)
            fields = {
                "kind": kind,
                "operation": call.name,
                "in_shape": call.in_shapes[0],
                "out_shape": call.shapes[0] if call.shapes else (),
                "inputs": tuple(sorted(producers)),
                "parameters": tuple(sorted(call.parameters)),
                "stores": tuple(t for tag in _counted(call) for t in tag.stores),
                "labels": own and own.labels,
                "constants": own and own.constants,
                "window": window(call, kind),
                "extra": extra,
            }
            fields |= number_ranges.fields(call, kind, extra, numbers) | special
            producers = frozenset({len(self.records)})
            weight = fields.get("weight")
            at = None if weight is None else place(weight)
            self.records.append(Record(name=self._name(fields), shared=at in self.seen, **fields))
            self.seen.update({at} - {None})
        chosen = operation.way == "same" and any(tag.selects for tag in call.tags)
        for output, known in zip(call.outputs, channels, strict=True):
            selects = chosen or output.dtype == torch.bool
            tag = Tag(producers=producers, channels=known, selects=selects, numbers=numbers,
                      writes=self.writes, **number_ranges.identity(call))  # fmt: skip
            self._put(output, call, tag)
            numbers = numbers if kind is None else number_ranges.ANY  # what is no copy: indices

    def _note_copies(self, call: Call) -> None:
        """Stored values that join an image without arithmetic are stored all the same."""
        for tag in _counted(call):
            if tag.stores and not tag.from_image:
                n, names = sum(t.numel() for t in tag.stores), tuple(sorted(tag.parameters))
                name = self._unique(names[0] if names else tag.source or "constant")
                self.records.append(
                    Record(name, STORED, "parameter", (n,), (n,), (), names, tag.stores)
                )

    def _channels(self, call: Call, way: str) -> tuple[Fields, list[Channels]]:
        """What a layer's record says of it, and the channels of each output."""
        fields, known = {}, None
        if way in LAYERS:
            fields, known = LAYERS[way](call)
        elif way in RULES:
            known = RULES[way](call)
        if known is None:  # not understood: all channels that it sees and makes stay
            self.labels.pin(*(tag.channels for tag in call.tags))
            sizes = [(s[1] if len(s) > 1 else 1, len(s)) for s in call.shapes]
            known = [self.labels.unknown(*size) for size in sizes]
        return fields, known

    def _name(self, fields: Fields) -> str:
        """The layer's name, or the module at work and the kind; numbered where not unique."""
        layers = {p.rpartition(".")[0] for p in fields["parameters"]}
        module = self.stack[-1] if self.stack else None
        name = self.names.get(module, "")
        if len(layers) == 1:
            name = layers.pop() or name
        elif module is None or next(module.children(), None) is not None or not name:
            label = fields["operation"] if fields["kind"] == UNKNOWN else fields["kind"]
            name = f"{name}.{label}".lstrip(".")
        return self._unique(name)

    def _unique(self, name: str) -> str:
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}#{self.taken[name]}"

    def trace(self, output: object) -> Trace:
        """What was written down of the pass, now that it has ended with this output."""
        tags = [tag_of(tensor) for tensor in tensors(output)]
        self.labels.pin(*(tag.channels for tag in tags))
        # Layers whose tensors have another use, too, or that were called apart from their own
        # modules, keep their channels: what is narrowed for one use would break the other.
        for i, record in enumerate(self.records):
            names, prefix = record.parameters, f"{record.layer}."
            own = record.layer and all(n.startswith(prefix) and self.uses[n] == 1 for n in names)
            shared = record.reads or record.state or set(names) - self.single
            if shared and record.labels is not None and not own:
                self.labels.fix(record.labels)
                if record.reads:
                    self.labels.fix(record.reads.labels)
                self.records[i] = replace(record, layer="")
        outputs = frozenset().union(*(tag.producers for tag in tags))
        unused, followed = tuple(sorted(self.unused)), self.values.followed
        trace = Trace(self.records, outputs, unused, self.labels, self.paddings, followed)
        number_ranges.settle(trace)
        return trace


def _counted(call: Call) -> list[Tag]:
    """Tags of inputs whose values are needed: neither places to pick, nor what is overwritten."""
    pairs = list(zip(call.inputs, call.tags, strict=True))
    if call.name == "copy":
        pairs = pairs[1:]
    if call.name in PICKS:
        pairs = [pair for pair in pairs if pair[0] is call.inputs[0] or pair[1].from_image]
    return [tag for _, tag in pairs]


def _cheapest(value: Tensor | None, tags: list[Tag]) -> tuple[Tensor, ...]:
    """What to store for a result of stored values: itself, or what it is made of, if that is
    less."""
    parts = {id(t): t for tag in tags for t in tag.stores}
    if value is not None and parts and value.numel() <= sum(t.numel() for t in parts.values()):
        return (value,)
    return tuple(parts.values())
