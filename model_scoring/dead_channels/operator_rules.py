"""What operations without weights do to the channels of their input; see flow."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.shufflenetv2 import channel_shuffle
from torchvision.ops import StochasticDepth
from torchvision.ops.stochastic_depth import stochastic_depth

from model_scoring.dead_channels.channel_graph import (
    NAN,
    Activation,
    Flow,
    Follower,
    Known,
    Rule,
    Rules,
    Size,
    unary,
)
from model_scoring.dead_channels.layer_rules import LAYERS


def _same(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Activation:
    """Channels and constants go through: copies, max pooling, averages without padding."""
    return follower.activation(result, x.labels, x.constants)


def _no_dropout(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    """Dropout of any kind, where it is off."""
    training = node.kwargs.get("training", node.args[-1])
    return _same(follower, node, result, x) if training is False else None


def _elementwise(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    """One number to one number; constants are found by applying it to them."""
    value = x.constants[None].clone()  # it may be in-place
    rest = node.args[1:]
    if node.op == "call_module":
        value = follower.network.get_submodule(node.target)(value)
    elif node.op == "call_method":
        value = getattr(value, node.target)(*rest, **node.kwargs)
    else:
        value = node.target(value, *rest, **node.kwargs)
    # not every operation carries NaN on
    constants = torch.where(x.constants.isnan(), NAN, value[0])
    return follower.activation(result, x.labels, constants)


AVERAGE = {"kernel_size": 0, "stride": None, "padding": 0, "ceil_mode": False}
AVERAGE |= {"count_include_pad": True, "divisor_override": None}


def _average(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Activation:
    """Average pooling; with zeros at the border only a 0 stays the same everywhere."""
    if node.op == "call_module":
        module = follower.network.get_submodule(node.target)
        options = {name: getattr(module, name) for name in AVERAGE}
    else:
        options = AVERAGE | dict(zip(AVERAGE, node.args[1:], strict=False)) | node.kwargs
    whole = options["padding"] in (0, (0, 0), [0, 0]) and not options["ceil_mode"]
    plain = whole and options["divisor_override"] is None
    constants = x.constants if plain else torch.where(x.constants == 0, 0.0, NAN)
    return follower.activation(result, x.labels, constants)


def _mean(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    rank = follower.env[node.args[0]].dim()
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 1)
    dims = dims if isinstance(dims, list | tuple) else [dims]
    return _same(follower, node, result, x) if all(d % rank > 1 for d in dims) else None


def _spread(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    """(N, C, ...) -> (N, C * ...): every pixel becomes a channel."""
    before = follower.env[node.args[0]].shape
    if result.dim() != 2 or result.shape != (before[0], before[1:].numel()):
        return None
    pixels = before[2:].numel()
    labels, constants = (t.repeat_interleave(pixels) for t in (x.labels, x.constants))
    return follower.activation(result, labels, constants)


def _view(follower: Follower, node: fx.Node, result: object) -> Known:
    """`x.view(x.size(0), -1)`, where the number of features follows from the input."""
    x, sizes = follower.of(node.args[0]), node.args[1:]
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    if x is None or len(sizes) != 2 or sizes[1] != -1:
        return None
    return _spread(follower, node, result, x)


NUMBERS = (int, float)


def _binary(operation: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """A sum, difference or product: channels of both operands only leave together."""

    def rule(follower: Follower, node: fx.Node, result: object) -> Known:
        if len(node.args) != 2 or node.kwargs or not isinstance(result, Tensor):
            return None
        operands = [follower.of(a) for a in node.args]
        if any(isinstance(a, NUMBERS) for a in node.args):
            return _with_number(operation, follower, node, result)
        if None in operands or len({follower.env[a].dim() for a in node.args}) > 1:
            return None
        one, other = operands
        if len(one.labels) != len(other.labels):
            return None
        follower.labels.tie(one.labels, other.labels)
        constants = operation(one.constants, other.constants)
        if operation is torch.mul:
            zero = (one.constants == 0) | (other.constants == 0)
            constants = constants.masked_fill(zero, 0.0)
        return follower.activation(result, one.labels, constants)

    return rule


def _with_number(
    operation: Callable[[Tensor, Tensor], Tensor], follower: Follower, node: fx.Node, result: Tensor
) -> Known:
    values = [a if isinstance(a, NUMBERS) else follower.of(a) for a in node.args]
    x = next((v for v in values if isinstance(v, Activation)), None)
    if x is None:
        return None
    numbers = [torch.tensor(v) if isinstance(v, NUMBERS) else v.constants for v in values]
    return follower.activation(result, x.labels, operation(*numbers).double())


def _concatenation(follower: Follower, node: fx.Node, result: object) -> Known:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = [follower.of(a) for a in node.args[0]]
    if dim not in (1, 1 - result.dim()) or None in parts:
        return None
    labels, constants = (torch.cat([getattr(p, n) for p in parts]) for n in ("labels", "constants"))
    return follower.activation(result, labels, constants)


def _chunk(follower: Follower, node: fx.Node, result: object) -> list[Activation] | None:
    """Equal parts, which have to stay equal."""
    x, number = follower.of(node.args[0]), node.args[1]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    single = len(node.all_input_nodes) == 1
    if x is None or dim != 1 or not single or len(result) != number or len(x.labels) % number:
        return None
    follower.labels.balanced.append(x.labels.reshape(number, -1))
    parts = zip(result, x.labels.chunk(number), x.constants.chunk(number), strict=True)
    return [follower.activation(*part) for part in parts]


def _shuffle(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    """Channel (a, b) of the groups becomes (b, a): the groups can only lose the same b."""
    groups = node.kwargs.get("groups", node.args[-1])
    rows = x.labels.reshape(groups, -1)
    for row in rows[1:]:
        follower.labels.tie(rows[0], row)
    constants = x.constants.reshape(groups, -1)
    return follower.activation(result, rows.t().flatten(), constants.t().flatten())


def _item(follower: Follower, node: fx.Node, result: object) -> object:
    """A part of a chunk, one of the sizes, or some pixels."""
    source, index = node.args
    fact = follower.facts[source] if isinstance(source, fx.Node) else None
    if len(node.all_input_nodes) != 1:
        return None
    if isinstance(fact, list) and isinstance(index, int):
        return fact[index]
    if isinstance(fact, Size):
        taken = [*range(len(follower.env[source]))][index]
        channels = taken == 1 or (isinstance(taken, list) and 1 in taken)
        return None if channels and node.users else ()
    if isinstance(fact, Activation) and isinstance(index, tuple):
        whole = slice(None)
        if index[:2] == (whole, whole) and all(isinstance(i, slice) for i in index):
            return _same(follower, node, result, fact)
    return None


def _size(follower: Follower, node: fx.Node, result: object) -> object:
    x = follower.of(node.args[0])
    if x is None:
        return None
    if len(node.args) == 1:
        return Size(x)
    return None if node.args[1] % follower.env[node.args[0]].dim() == 1 else ()


def _attribute(follower: Follower, node: fx.Node, result: object) -> object:
    x = follower.of(node.args[0])
    return Size(x) if x and node.args[1] == "shape" else None


def _ignored(follower: Follower, node: fx.Node, result: object) -> object:
    return None if isinstance(result, Tensor) else ()


# fmt: off
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid,
    nn.Tanh, nn.Hardtanh, nn.GELU, nn.Softplus, nn.Mish, torch.relu, torch.relu_, torch.sigmoid,
    torch.tanh, torch.clamp, F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.sigmoid, F.hardswish,
    F.hardsigmoid, F.tanh, F.hardtanh, F.gelu, F.softplus, F.mish, "relu", "relu_", "sigmoid",
    "tanh", "clamp", "clamp_",
)
COPIES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth, "contiguous", "clone", "detach",
    nn.MaxPool2d, F.max_pool2d, nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d,
    nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d,
)
RULES: Rules = {
    **LAYERS,
    **dict.fromkeys(ACTIVATIONS, unary(_elementwise)),
    **dict.fromkeys(COPIES, unary(_same)),
    **dict.fromkeys((F.dropout, F.dropout2d, stochastic_depth), unary(_no_dropout)),
    **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), unary(_average)),
    **dict.fromkeys((torch.mean, "mean"), unary(_mean)),
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten"), unary(_spread)),
    **dict.fromkeys((torch.reshape, "view", "reshape"), _view),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _binary(torch.add)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), _binary(torch.sub)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _binary(torch.mul)),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    **dict.fromkeys((torch.chunk, "chunk"), _chunk),
    channel_shuffle: unary(_shuffle),
    operator.getitem: _item,
    "size": _size,
    getattr: _attribute,
    "dim": _ignored,
}
# fmt: on


def follow(network: nn.Module, graph: fx.Graph, shape: tuple[int, int, int]) -> Flow | None:
    """Channels of a network in evaluation mode for images of (channels, height, width).

    Its tensors are float64 on the CPU. None if its code does not run on shapes alone.
    """
    follower = Follower(network, graph, RULES)
    image = torch.zeros(2, *shape, dtype=torch.float64, device="meta")
    try:
        with torch.no_grad():
            follower.run(image)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return Flow(follower.layers, follower.labels)
