"""What layers with weights do to the channels of their input; see flow."""

import torch
from torch import Tensor, fx, nn

from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.efficientnet import SameConv2d
from model_scoring.dead_channels.channel_graph import (
    Activation,
    Follower,
    Known,
    Layer,
    Rules,
    unary,
)
from model_scoring.tracing.constant_channels import of_batchnorm, of_filters
from model_scoring.tracing.layer_weights import grouped

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _next_batchnorm(follower: Follower, node: fx.Node) -> str | None:
    """The BatchNorm that is alone in taking a layer's outputs."""
    users = list(node.users)
    if len(users) != 1 or users[0].args != (node,):
        return None
    norm = follower.layer(users[0])
    return users[0].target if type(norm) in NORMS and norm.running_mean is not None else None


def _read(
    follower: Follower,
    node: fx.Node,
    result: Tensor,
    x: Activation,
    *,
    groups: int = 1,
    padded: bool = False,
) -> Activation:
    """A convolution or linear layer: new channels, or those of its input if channel by channel."""
    layer = follower.layer(node)
    weight = layer.weight.detach()
    own = 1 < groups == len(x.labels) == len(weight)
    labels = x.labels if own else follower.labels.new(len(weight))
    if groups > 1 and not own:
        follower.labels.balanced += [x.labels.reshape(groups, -1), labels.reshape(groups, -1)]
    norm = _next_batchnorm(follower, node)
    follower.layers.append(
        Layer(node.target, layer, x.labels, labels, x.constants, not own, padded, norm)
    )
    counts = (grouped(weight, groups) != 0).sum(-1)
    bias = None if layer.bias is None else layer.bias.detach()
    constants = of_filters(weight, counts, bias, x.constants, padded=padded)
    return follower.activation(result, labels, constants)


def _convolution(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    conv = follower.layer(node)
    if conv is None or result.dim() != 4:
        return None
    own_padding = type(conv) is SameConv2d or conv.padding == "same"
    window = max(conv.kernel_size) > 1
    padded = window if own_padding else conv.padding != "valid" and any(conv.padding)
    # the other modes repeat what is there, and a constant repeated is the same constant
    padded = padded and conv.padding_mode == "zeros"
    return _read(follower, node, result, x, groups=conv.groups, padded=padded)


def _linear(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    if follower.layer(node) is None or result.dim() != 2:  # else the channels come last
        return None
    return _read(follower, node, result, x)


def _batchnorm(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    norm = follower.layer(node)
    if norm is None:
        return None
    state = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    state = [None if t is None else t.detach() for t in state]
    constants = of_batchnorm(x.constants, len(x.labels), state, norm.eps)
    follower.layers.append(Layer(node.target, norm, x.labels, x.labels, x.constants, False))
    return follower.activation(result, x.labels, constants)


def _option_a(follower: Follower, node: fx.Node, result: Tensor, x: Activation) -> Known:
    layer = follower.layer(node)
    if layer is None:
        return None
    sides = [follower.labels.new(n) for n in (layer.before, layer.after)]
    zeros = [torch.zeros(len(side), dtype=torch.float64) for side in sides]
    labels = torch.cat([sides[0], x.labels, sides[1]])
    follower.layers.append(Layer(node.target, layer, x.labels, labels, x.constants, False))
    return follower.activation(result, labels, torch.cat([zeros[0], x.constants, zeros[1]]))


LAYERS: Rules = {
    **dict.fromkeys((nn.Conv2d, SameConv2d), unary(_convolution)),
    nn.Linear: unary(_linear),
    **dict.fromkeys(NORMS, unary(_batchnorm)),
    OptionA: unary(_option_a),
}
