"""A network's graph by torch.export: operations on what depends on the image."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, default_decompositions, export

from data.errors import UserError
from model_compound_scaling.networks.few_values import TINY
from model_compound_scaling.networks.logits import logits_of
from model_scoring.export.c_source.program.steps import Codes

QUANTIZE, INSIDE = "quantize", "inside a quantizer"  # names of calls that ATen does not have
WHOLE = ("silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "gelu")  # have kernels


@dataclass
class Call:
    """One operation on the image's values. Arguments may hold Ref (of an earlier call)."""

    name: str  # as ATen has it, without overload
    function: Callable
    args: tuple
    kwargs: dict
    shape: tuple[int, ...]  # of the (first) result
    users: int = 0


@dataclass(frozen=True)
class Ref:
    """The result of a call; -1 is the image."""

    call: int


@dataclass
class Graph:
    """Calls in an order that can be run, and the one whose result is the logits."""

    calls: list[Call] = field(default_factory=list)
    logits: Ref = Ref(-1)


def _program(network: nn.Module, image: Tensor, classes: int | None) -> ExportedProgram:
    def only_logits(_: nn.Module, images: tuple, output: object) -> Tensor:
        if isinstance(output, Tensor) and output.dim() == 2:
            return output
        return logits_of(output, images[0].shape[0], classes)

    table = default_decompositions()
    for operation in [o for o in table if o._schema.name.partition("::")[2] in WHOLE]:
        table.pop(operation)
    with network.register_forward_hook(only_logits), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(network, (image,), strict=False).run_decompositions(table)


def _constants(program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants by the names of their placeholders."""
    signature = program.graph_signature
    state = {**program.constants, **program.state_dict}
    sources = (signature.inputs_to_parameters, signature.inputs_to_buffers)
    named = {k: v for source in sources for k, v in source.items()}
    named |= dict(signature.inputs_to_lifted_tensor_constants)
    return {name: state[source].detach() for name, source in named.items()}


@torch.no_grad()
def graph_of(network: nn.Module, shape: tuple[int, int, int], classes: int | None) -> Graph:
    """The graph of a network on the CPU in evaluation mode for one image (channels, height, width).
    Raises UserError if torch cannot export it."""
    try:
        program = _program(network, torch.zeros(1, *shape), classes)
    except Exception as error:  # the exporter runs the network's code, which may fail in any way
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"--c-source: torch cannot export this network ({reason})") from None
    constants, graph = _constants(program), Graph()
    known: dict[fx.Node, object] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known[node] = constants.get(node.name, Ref(-1))
        elif node.op == "output":
            graph.logits = known[node.args[0][-1]]
        else:
            known[node] = _called(node, known, graph)
    _join_quantizers(graph.calls)
    return graph


def _called(node: fx.Node, known: dict[fx.Node, object], graph: Graph) -> object:
    """A call's result: a number of the graph, or a value if it does not depend on the image."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    refs = [known[n] for n in node.all_input_nodes if isinstance(known[n], Ref)]
    if not refs:
        return node.target(*args, **kwargs)
    for ref in refs:
        if ref.call >= 0:
            graph.calls[ref.call].users += 1
    name = getattr(node.target, "_schema", None)
    name = name.name.partition("::")[2] if name else node.target.__name__
    value = node.meta["val"]
    shape = (value[0] if isinstance(value, tuple | list) else value).shape
    graph.calls.append(Call(name, node.target, args, kwargs, tuple(shape)))
    return Ref(len(graph.calls) - 1)


def _join_quantizers(calls: list[Call]) -> None:
    """clamp(round(x / step), low, high) * step becomes one call, of x and Codes."""
    for call in calls:
        chain = [call]
        for name in ("clamp", "round", "div"):
            ref = chain[-1].args[0] if chain[-1].args else None
            inner = calls[ref.call] if isinstance(ref, Ref) and ref.call >= 0 else None
            if inner is None or inner.name != name or inner.users != 1 or inner.kwargs:
                break
            chain.append(inner)
        if call.name == "mul" and len(chain) == 4 and (codes := _codes(*chain[:2], chain[3])):
            call.name, call.args = QUANTIZE, (chain[3].args[0], codes)
            for inner in chain[1:]:
                inner.name = INSIDE


def _codes(product: Call, clamp: Call, quotient: Call) -> Codes | None:
    """None where they are no codes that fit into a byte, 0 and another one among them."""
    steps = [call.args[1] for call in (product, quotient)]
    if any(isinstance(s, Ref) or torch.as_tensor(s).numel() != 1 for s in steps):
        return None
    step, again = map(float, steps)
    low, high = (float(end) if end is not None else math.inf for end in clamp.args[1:3])
    if not (step == again >= TINY and low <= 0 <= high < math.inf and low % 1 == high % 1 == 0):
        return None  # 1 / step is inf below TINY
    codes = Codes(step, int(low), int(high))
    return codes if 0 < codes.largest < 2**8 else None
