"""Which layers a channel passes through: what has to be narrowed together, and what reads it.

A network's graph is followed with shapes only. Every activation carries a label and a constant per
channel. Sums and products tie the labels of their operands, as a channel can only leave both;
concatenations and flattening move them. What is not understood pins its channels: they stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from model_compound_scaling.networks.narrowing import NARROWINGS

NAN = float("nan")


@dataclass
class Activation:
    """An activation (N, C, ...) on its way through the network."""

    labels: Tensor  # (C,) int64
    constants: Tensor  # (C,) float64, NaN where the channel depends on the image
    memory: int = 0  # which memory it lies in


@dataclass(frozen=True)
class Size:
    """The shape of an activation, asked for by the network's code."""

    of: Activation


@dataclass(frozen=True)
class Layer:
    """A layer that can be narrowed, the labels of its channels and the constants it reads."""

    name: str
    module: nn.Module
    inputs: Tensor  # (C_in,) labels
    outputs: Tensor  # (C_out,) labels
    constants: Tensor  # (C_in,) of its inputs
    reads: bool  # mixes channels; else each output is made of the input of its label
    padded: bool = False  # with zeros, which tell its border from the inside
    batchnorm: str | None = None  # the one that alone takes its outputs


@dataclass
class Labels:
    """Labels, which of them are tied, and which have to stay."""

    parents: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    balanced: list[Tensor] = field(default_factory=list)  # (parts, n): parts stay equally long

    def new(self, count: int) -> Tensor:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = label = self.parents[self.parents[label]]
        return label

    def tie(self, one: Tensor, other: Tensor) -> None:
        if one is not other:
            for a, b in zip(one.tolist(), other.tolist(), strict=True):
                self.parents[self.root(a)] = self.root(b)

    def pin(self, labels: Tensor) -> None:
        self.pinned.update(labels.tolist())

    def roots(self) -> Tensor:
        """(labels,) the class of each."""
        return torch.tensor([self.root(i) for i in range(len(self.parents))], dtype=torch.int64)


@dataclass(frozen=True)
class Flow:
    """What is known of a network's channels."""

    layers: list[Layer]
    labels: Labels


class _Tracer(fx.Tracer):
    """Layers that can be narrowed are not looked into."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(channel_shuffle,))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in NARROWINGS or super().is_leaf_module(module, name)


def graph_of(network: nn.Module) -> fx.Graph | None:
    """Operations in order, None if the network's code cannot be followed without an image."""
    try:
        return _Tracer().trace(network)
    except Exception:  # the network's own code runs on placeholders and may fail in any way
        return None


def without_values(network: nn.Module) -> nn.Module:
    """A copy whose tensors are shapes only."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        for p in network.parameters()
    }
    memo |= {id(b): b.to("meta") for b in network.buffers()}
    return deepcopy(network, memo)


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _several(items: Iterable[int]) -> set[int]:
    return {item for item, count in Counter(items).items() if count > 1}


class Follower(fx.Interpreter):
    """Runs a graph on shapes, one operation after the other, and keeps what is known of each.

    A rule (follower, node, result) -> fact says what becomes of the channels; None: no rule, or
    none for these arguments.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph, rules: Rules) -> None:
        super().__init__(without_values(network), garbage_collect_values=False, graph=graph)
        self.network, self.rules = network, rules
        self.layers: list[Layer] = []
        self.labels = Labels()
        self.facts: dict[fx.Node, object] = {}
        calls = [network.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"]
        self.repeated = _several(map(id, calls))
        parameters = (p for m in network.modules() for p in m._parameters.values())
        self.shared = _several(id(p) for p in parameters if p is not None)
        named = {n.target for n in graph.nodes if n.op == "get_attr"}
        self.shared |= {id(p) for name, p in network.named_parameters() if name in named}

    def run_node(self, node: fx.Node) -> object:
        inputs = [t for n in node.all_input_nodes for t in _tensors(self.env[n])]
        versions = [t._version for t in inputs]
        with torch.device("meta"):
            result = self._shaped(node, inputs)
        rule = self._rule(node)
        fact = rule(self, node, result) if rule else None
        self.facts[node] = self._opaque(node, result) if fact is None else fact
        written = {
            t.untyped_storage()._cdata
            for t, version in zip(inputs, versions, strict=True)
            if t._version != version
        }
        self._forget(written, self.facts[node])
        return result

    def _shaped(self, node: fx.Node, inputs: list[Tensor]) -> object:
        """The node's result; that of BatchNorm, which has the shape of its input, without the
        many operations that it consists of."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        if node.op == "call_module" and type(self.network.get_submodule(node.target)) in norms:
            return torch.empty_like(inputs[0])
        return super().run_node(node)

    def _rule(self, node: fx.Node) -> Rule | None:
        if node.op == "call_module":
            return self.rules.get(type(self.network.get_submodule(node.target)))
        return self.rules.get(node.target) if node.op.startswith("call_") else None

    def _opaque(self, node: fx.Node, result: object) -> object:
        """Not understood: channels it sees and channels it makes stay as they are."""
        for argument in node.all_input_nodes:
            for fact in _flat(self.facts[argument]):
                self.labels.pin((fact.of if isinstance(fact, Size) else fact).labels)
        if isinstance(result, Tensor) and result.dim() >= 2:
            labels = self.labels.new(result.shape[1])
            self.labels.pin(labels)
            return self.activation(result, labels)
        return ()

    def _forget(self, written: set[int], fact: object) -> None:
        """An operation wrote into memory: of others who lie there too, no constant is known."""
        kept = {id(item) for item in _flat(fact)}
        for item in _flat(list(self.facts.values())) if written else ():
            if isinstance(item, Activation) and item.memory in written and id(item) not in kept:
                item.constants = torch.full_like(item.constants, NAN)

    def activation(
        self, result: Tensor, labels: Tensor, constants: Tensor | None = None
    ) -> Activation:
        """A fact about a result (N, C, ...); no constants: all channels vary."""
        if constants is None:
            constants = torch.full((len(labels),), NAN, dtype=torch.float64)
        assert len(labels) == len(constants) == result.shape[1]
        return Activation(labels, constants, result.untyped_storage()._cdata)

    def of(self, argument: object) -> Activation | None:
        """What is known of an argument, if it is an activation with channels."""
        fact = self.facts.get(argument) if isinstance(argument, fx.Node) else None
        return fact if isinstance(fact, Activation) else None

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer a node calls, if it may be narrowed: called once, its tensors its own."""
        if node.op != "call_module":
            return None
        module = self.network.get_submodule(node.target)
        tensors = [p for p in module._parameters.values() if p is not None]
        hooks = module._forward_pre_hooks or module._forward_hooks
        shared = id(module) in self.repeated or any(id(p) in self.shared for p in tensors)
        return None if shared or hooks else module


Rule = Callable[[Follower, fx.Node, object], object]
Rules = dict[object, Rule]
Known = Activation | None
Unary = Callable[[Follower, fx.Node, Tensor, Activation], Known]


def unary(rule: Unary) -> Rule:
    """A rule for operations whose only activation is their first argument."""

    def checked(follower: Follower, node: fx.Node, result: object) -> Known:
        x = follower.of(node.args[0]) if node.args else None
        single = len(node.all_input_nodes) == 1 and isinstance(result, Tensor)
        return rule(follower, node, result, x) if x and single else None

    return checked


def _flat(fact: object) -> Iterable[Activation | Size]:
    if isinstance(fact, Activation | Size):
        yield fact
    elif isinstance(fact, list | tuple):
        for item in fact:
            yield from _flat(item)
