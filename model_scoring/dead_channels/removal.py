"""Take dead channels out of a network: those that nothing reads, and constants that fold exactly.

A constant channel is 0 for its readers once its value is in their bias, or in the mean that the
BatchNorm after them subtracts. A reader that pads with zeros sees another value at its border, so
there only a 0 can go. All is decided and folded in float64 and rounded once.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.errors import UserError
from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.efficientnet import SameConv2d
from model_compound_scaling.networks.logits import tensors
from model_compound_scaling.networks.narrowing import resize, sizes_of
from model_scoring.dead_channels.dead_code import dead_channels, mixing, narrowable
from model_scoring.dead_channels.float64 import Float64
from model_scoring.tracing.constant_channels import contribution
from model_scoring.tracing.forward_pass import one_thread, trace
from model_scoring.tracing.operation_record import Trace


@dataclass(frozen=True)
class Thin:
    """A network without its dead channels."""

    network: nn.Module
    passes: int  # rounds in which dead channels were found
    note: str = ""  # why nothing could be done


def _fold(network: nn.Module, trace: Trace, i: int, shift: Tensor) -> None:
    """Keep what constant inputs contributed: never in the weights, which may be ternary."""
    record = trace.records[i]
    layer, after = network.get_submodule(record.layer), trace.takes_shifts(i)
    if after is not None:
        network.get_submodule(trace.records[after].layer).running_mean.sub_(shift)
        return
    if layer.bias is None:
        resize(layer, sizes_of(layer) | {"bias": 1})
    layer.bias += shift


CHANNELS = ("in_channels", "out_channels")
Narrow = tuple[dict[str, int], dict[str, Tensor]]  # sizes and tensors of a narrower layer


def _picked(layer: nn.Module, keep: Tensor, *names: str) -> dict[str, Tensor]:
    """Entries to keep of those tensors that the layer has."""
    tensors = {name: getattr(layer, name) for name in names}
    return {name: tensor[keep] for name, tensor in tensors.items() if tensor is not None}


def _mixing(layer: nn.Module, inputs: Tensor, outputs: Tensor, *, depthwise: bool) -> Narrow:
    """A convolution or linear layer; inputs (c_in,), outputs (c_out,) bool: channels that stay."""
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else CHANNELS
    sizes = dict(zip(names, (int(inputs.sum()), int(outputs.sum())), strict=True))
    if depthwise:
        return sizes | {"groups": sizes["out_channels"]}, _picked(layer, outputs, "weight", "bias")
    parts = layer.weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    masks = (mask.reshape(len(parts), -1) for mask in (inputs, outputs))
    weight = [part[o][:, i] for part, i, o in zip(parts, *masks, strict=True)]
    return sizes, {"weight": torch.cat(weight), **_picked(layer, outputs, "bias")}


def _batchnorm(norm: nn.Module, inputs: Tensor, outputs: Tensor, *, depthwise: bool) -> Narrow:
    tensors = _picked(norm, outputs, "weight", "bias", "running_mean", "running_var")
    return {"num_features": int(outputs.sum())}, tensors


def _option_a(shortcut: OptionA, inputs: Tensor, outputs: Tensor, *, depthwise: bool) -> Narrow:
    before = shortcut.before
    sides = {"before": outputs[:before], "after": outputs[before + len(inputs) :]}
    return {name: int(side.sum()) for name, side in sides.items()}, {}


NARROW: dict[type[nn.Module], Callable[..., Narrow]] = {
    **dict.fromkeys((nn.Conv2d, SameConv2d, nn.Linear), _mixing),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batchnorm),
    OptionA: _option_a,
}


def remove(network: nn.Module, trace: Trace, gone: Tensor) -> None:
    """Fold what the channels that go contribute, then narrow their layers, in place."""
    for i in mixing(trace):
        record = trace.records[i]
        values = record.reads.constants.nan_to_num(0.0).where(gone[record.reads.labels], 0.0)
        shift = contribution(record.weight, len(record.weights.counts), values)
        if bool(shift[~gone[record.labels]].any()):
            _fold(network, trace, i, shift)
    for part in narrowable(trace):
        inputs = ~gone[part.reads.labels if part.reads else part.labels]
        outputs, layer = ~gone[part.labels], network.get_submodule(part.layer)
        if not bool(inputs.all() and outputs.all()):
            depthwise = part.reads is not None and part.reads.depthwise
            sizes, tensors = NARROW[type(layer)](layer, inputs, outputs, depthwise=depthwise)
            resize(layer, sizes_of(layer) | sizes)
            for name, tensor in tensors.items():
                getattr(layer, name).copy_(tensor)


def _same_function(one: nn.Module, other: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether two float64 networks give the same logits for random images, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    try:
        outputs = (tensors(network(images)) for network in (one, other))
        expected, found = (torch.cat([t.flatten() for t in output]) for output in outputs)
        if expected.shape != found.shape:
            return False
        difference = (expected - found).abs().max() / expected.abs().max().clamp(min=1e-30)
        return float(difference) < 1e-9
    except (RuntimeError, ValueError):  # the network's own code may count on certain widths
        return False


@torch.no_grad()
def thin(network: nn.Module, shape: tuple[int, int, int]) -> Thin:
    """A copy of a network without channels that cannot matter, for evaluation mode and images of
    (channels, height, width). Channels are kept where the network's code is not understood, and all
    of them, with a note, where the result would be another function."""
    try:
        original = deepcopy(network).cpu().double().eval()
    except RuntimeError:  # pruning's hooks, for one, leave tensors there that torch cannot copy
        return Thin(network, 0, "hooks compute its weights: make them permanent first")
    with one_thread(), Float64():
        try:
            traced = trace(original, shape)
        except (UserError, AssertionError):
            return Thin(network, 0, "its code does not run in float64")
        dead = dead_channels(traced)
        if not traced.followed:
            return Thin(network, 0, "its code cannot be followed without an image")
        if not dead.rounds:
            return Thin(network, 0, "no channel is dead")
        work = deepcopy(original)
        remove(work, traced, dead.gone)
    with Float64():
        same = _same_function(original, work, shape)
    if not same:
        return Thin(network, 0, "its code counts on the widths it has")
    return Thin(work.float(), dead.rounds)
