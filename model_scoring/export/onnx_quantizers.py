"""Quantized activations in ONNX' own operations: round(x / step), bounds, and the product with the
step become QuantizeLinear and DequantizeLinear, by which runtimes know integers."""

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_scoring.export.onnx_code_types import ACTIVATION_TYPES, OPSETS

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

PARTS = ("low", "high", "whole", "zero", "codes")  # names behind a result's
# what onnxruntime moves QuantizeLinear to the front of, where it has no kernel of fewer than 8 bits
MOVED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
DROPPED = "Relu"  # which it does before signed codes of fewer than 8 bits, too
BOUNDS = {"Max": ("low",), "Min": ("high",), "Clip": ("low", "high")}  # and what each sets


class _Quantizer(NamedTuple):
    """The operations of one, in their order, and the range of its codes."""

    nodes: "list[NodeProto]"  # Div, Round, bounds, Mul
    low: float
    high: float


class _Graph:
    """Who makes and who takes what in a graph."""

    def __init__(self, graph: "GraphProto") -> None:
        from onnx import numpy_helper

        self.makers = {name: node for node in graph.node for name in node.output}
        self.takers: dict[str, list] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.takers[name].append(node)
        for output in graph.output:
            self.takers[output.name].append(None)
        arrays = ((t.name, t) for t in graph.initializer if math.prod(t.dims) == 1)
        self.scalars = {name: float(numpy_helper.to_array(t).item()) for name, t in arrays}

    def scalar(self, name: str) -> float | None:
        """The one number that a name stands for, None if it does not."""
        from onnx import numpy_helper

        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Identity":
            return self.scalar(maker.input[0])
        if maker is not None and maker.op_type == "Constant" and maker.attribute[0].name == "value":
            value = numpy_helper.to_array(maker.attribute[0].t)
            return float(value.item()) if value.size == 1 else None
        return self.scalars.get(name)

    def next(self, node: "NodeProto") -> "tuple[NodeProto, list[float | None]] | None":
        """What alone takes a node's result, and the numbers that it takes beside it."""
        takers = self.takers[node.output[0]]
        if len(takers) != 1 or takers[0] is None:
            return None
        taker = takers[0]
        return taker, [self.scalar(name) for name in taker.input if name != node.output[0]]

    def quantizer(self, rounding: "NodeProto") -> _Quantizer | None:
        """The one that a Round is part of, None if it is of something else."""
        first, bounds = self.makers.get(rounding.input[0]), {"low": -math.inf, "high": math.inf}
        if first is None or first.op_type != "Div":
            return None
        step, nodes = self.scalar(first.input[1]), [first, rounding]
        while found := self.next(nodes[-1]):
            node, numbers = found
            nodes.append(node)
            if node.op_type == "Mul" and numbers == [step] and step is not None:
                return _Quantizer(nodes, **bounds)
            if node.op_type not in BOUNDS or None in numbers:
                return None
            bounds |= dict(zip(BOUNDS[node.op_type], numbers, strict=True))
        return None


def with_quantizers(model: "ModelProto") -> "ModelProto":
    """The same graph with its quantizers in these two operations each. The Clip behind them bounds
    what has fewer bits than its type; and onnxruntime would round a layer's float weights to 8 bits
    where it finds one just between a DequantizeLinear and a QuantizeLinear."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph, changed = _Graph(model.graph), onnx.ModelProto()
    opset = next(o.version for o in model.opset_import if o.domain == "")
    rounding = (graph.quantizer(node) for node in model.graph.node if node.op_type == "Round")
    replaced, dropped, stored = {}, set(), []
    for found in filter(None, rounding):
        before = getattr(graph.makers.get(found.nodes[0].input[0]), "op_type", None)
        bytes_only = before in MOVED or (before == DROPPED and found.low < 0)
        latest = OPSETS[0] if bytes_only else opset
        fitting = (row for row in ACTIVATION_TYPES if latest >= row.since)
        kind = next((r for r in fitting if r.low <= found.low and found.high <= r.high), None)
        if kind is None:
            continue
        (x, scale), (result,) = found.nodes[0].input, found.nodes[-1].output
        low, high, whole, zero, codes = (f"{result}.{part}" for part in PARTS)
        stored.append(helper.make_tensor(zero, getattr(TensorProto, kind.name), [], [0]))
        for name, bound in ((low, found.low), (high, found.high)):
            value = np.float32(bound) * np.float32(graph.scalar(scale))
            stored.append(numpy_helper.from_array(np.asarray(value), name))
        new = [helper.make_node("QuantizeLinear", [x, scale, zero], [codes]),
               helper.make_node("DequantizeLinear", [codes, scale, zero], [whole]),
               helper.make_node("Clip", [whole, low, high], [result])]  # fmt: skip
        replaced[result] = new
        dropped |= {node.output[0] for node in found.nodes[:-1]}
    changed.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        if node.output[0] not in dropped:
            nodes += replaced.get(node.output[0], [node])
    used = {name for node in nodes for name in node.input} | {o.name for o in model.graph.output}
    nodes = [n for n in nodes if n.op_type not in ("Constant", "Identity") or n.output[0] in used]
    used = {name for node in nodes for name in node.input}
    for field, items in (("initializer", [*model.graph.initializer, *stored]), ("node", nodes)):
        changed.graph.ClearField(field)
        kept = (item for item in items if field == "node" or item.name in used)
        getattr(changed.graph, field).extend(kept)
    return changed
