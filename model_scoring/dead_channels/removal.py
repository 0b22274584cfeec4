"""Take dead channels out of a network: those that nothing reads, and constants that fold exactly.

A constant channel is 0 for its readers once its value is in their bias, or in the mean that the
BatchNorm after them subtracts. A reader that pads with zeros sees another value at its border, so
there only a 0 can go. Taking one channel out can be the end of others: repeated until none is left.
All is decided and folded in float64 and rounded once.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.efficientnet import SameConv2d
from model_compound_scaling.networks.narrowing import resize, sizes_of
from model_scoring.dead_channels.channel_graph import Flow, Layer, graph_of
from model_scoring.dead_channels.operator_rules import follow
from model_scoring.tracing.layer_weights import grouped
from model_scoring.tracing.recorder import one_thread

TOLERANCE = 1e-9  # of float64 logits, relative to the largest


@dataclass(frozen=True)
class Thin:
    """A network without its dead channels."""

    network: nn.Module
    passes: int  # rounds in which channels went
    note: str = ""  # why nothing could be done


def _groups(layer: Layer) -> int:
    return getattr(layer.module, "groups", 1)


def _needed_inputs(layer: Layer) -> Tensor:
    """bool (C_in,): channels with weights whose values do not fold into this layer exactly."""
    touched = (grouped(layer.module.weight, _groups(layer)) != 0).any(-1).any(1).flatten()
    folds = (layer.constants == 0) | (~layer.constants.isnan() & (not layer.padded))
    return touched & ~folds


def _restore(gone: Tensor, labels: Tensor, count: int) -> Tensor:
    """Labels of `count` channels that have to stay after all."""
    return labels[gone[labels]][:count]


def _missed(flow: Flow, gone: Tensor) -> list[Tensor]:
    """Labels without which a layer would be empty, or parts that must be equal would not be."""
    missed = [
        _restore(gone, layer.outputs, 1) for layer in flow.layers if bool(gone[layer.outputs].all())
    ]
    for parts in flow.labels.balanced:
        kept = (~gone[parts]).sum(1)
        for part, count in zip(parts, (kept.max().clamp(min=1) - kept).tolist(), strict=True):
            missed.append(_restore(gone, part, count))
    return [labels for labels in missed if len(labels)]


def dead_channels(flow: Flow) -> Tensor:
    """bool (labels,): channels that can leave all layers they pass through, exactly."""
    roots = flow.labels.roots()
    needed = torch.zeros(len(roots), dtype=torch.bool)
    needed[roots[sorted(flow.labels.pinned)]] = True
    for layer in flow.layers:
        if layer.reads:
            needed[roots[layer.inputs[_needed_inputs(layer)]]] = True
    while missed := _missed(flow, ~needed[roots]):
        for labels in missed:
            needed[roots[labels]] = True
    return ~needed[roots]


def _shift(layer: Layer, gone: Tensor) -> Tensor:
    """(C_out,) what the constant inputs that go add to each output."""
    values = torch.where(gone[layer.inputs], layer.constants.nan_to_num(0.0), 0.0)
    sums = grouped(layer.module.weight, _groups(layer)).sum(-1)
    return (sums * values.reshape(len(sums), 1, -1)).sum(-1).flatten()


def _fold(layer: Layer, network: nn.Module, shift: Tensor) -> None:
    """Keep what constant inputs contributed: never in the weights, which may be ternary."""
    if layer.module.bias is None and layer.batchnorm:
        network.get_submodule(layer.batchnorm).running_mean -= shift
        return
    if layer.module.bias is None:
        resize(layer.module, sizes_of(layer.module) | {"bias": 1})
    layer.module.bias += shift


def _narrow_conv(layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
    """inputs (C_in,), outputs (C_out,) bool: channels that stay."""
    conv, groups = layer.module, layer.module.groups
    kept = {"in_channels": int(inputs.sum()), "out_channels": int(outputs.sum())}
    if layer.reads:
        parts = conv.weight.unflatten(0, (groups, -1))
        sides = zip(parts, inputs.reshape(groups, -1), outputs.reshape(groups, -1), strict=True)
        weight = torch.cat([part[o][:, i] for part, i, o in sides])
    else:
        weight, groups = conv.weight[outputs], kept["out_channels"]
    tensors = {"weight": weight, "bias": None if conv.bias is None else conv.bias[outputs]}
    _replace(conv, {**kept, "groups": groups}, tensors)


def _narrow_linear(layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
    linear = layer.module
    sizes = {"in_features": int(inputs.sum()), "out_features": int(outputs.sum())}
    bias = None if linear.bias is None else linear.bias[outputs]
    _replace(linear, sizes, {"weight": linear.weight[outputs][:, inputs], "bias": bias})


def _narrow_batchnorm(layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: getattr(layer.module, name) for name in names}
    kept = {name: t if t is None else t[outputs] for name, t in tensors.items()}
    _replace(layer.module, {"num_features": int(outputs.sum())}, kept)


def _narrow_option_a(layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
    before = layer.module.before
    sides = {"before": outputs[:before], "after": outputs[before + len(inputs) :]}
    _replace(layer.module, {name: int(side.sum()) for name, side in sides.items()}, {})


def _replace(module: nn.Module, sizes: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    resize(module, sizes_of(module) | sizes)
    for name, tensor in tensors.items():
        if tensor is not None:
            getattr(module, name).copy_(tensor)


NARROW: dict[type[nn.Module], Callable[[Layer, Tensor, Tensor], None]] = {
    nn.Conv2d: _narrow_conv,
    SameConv2d: _narrow_conv,
    nn.Linear: _narrow_linear,
    nn.BatchNorm1d: _narrow_batchnorm,
    nn.BatchNorm2d: _narrow_batchnorm,
    OptionA: _narrow_option_a,
}


def remove(network: nn.Module, flow: Flow, gone: Tensor) -> None:
    """Fold what the channels that go contribute, then narrow their layers, in place."""
    for layer in flow.layers:
        if layer.reads and bool((shift := _shift(layer, gone)).any()):
            _fold(layer, network, shift)
    for layer in flow.layers:
        inputs, outputs = ~gone[layer.inputs], ~gone[layer.outputs]
        if not bool(inputs.all() and outputs.all()):
            NARROW[type(layer.module)](layer, inputs, outputs)


def largest_difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Largest difference of two networks' logits, relative to the largest logit of the first."""
    expected, found = one(images), other(images)
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30))


def _same_function(one: nn.Module, other: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether two float64 networks give the same logits for random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    try:
        return largest_difference(one, other, images) < TOLERANCE
    except (RuntimeError, ValueError):  # the network's own code may count on certain widths
        return False


@torch.no_grad()
def thin(network: nn.Module, shape: tuple[int, int, int]) -> Thin:
    """A copy of a network without channels that cannot matter, for evaluation mode.

    Images have (channels, height, width). Channels are kept where the network's code is not
    understood, and all of them, with a note, where the result would be another function.
    """
    original = deepcopy(network).cpu().double().eval()
    graph = graph_of(original)
    if graph is None:
        return Thin(network, 0, "its code cannot be followed without an image")
    work, passes = deepcopy(original), 0
    with one_thread():
        while flow := follow(work, graph, shape):
            gone = dead_channels(flow)
            if not bool(gone.any()):
                break
            remove(work, flow, gone)
            passes += 1
    if not passes:
        note = "" if flow else "its code does not run on shapes alone"
        return Thin(network, 0, note or "no channel is dead")
    if flow is None or not _same_function(original, work, shape):
        return Thin(network, 0, "its code counts on the widths it has")
    return Thin(work.float(), passes)
