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

from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.efficientnet import SameConv2d
from model_compound_scaling.networks.narrowing import resize, sizes_of
from model_scoring.dead_channels.dead_code import dead_channels, narrowable
from model_scoring.tracing.forward_pass import one_thread, trace
from model_scoring.tracing.layer_weights import grouped
from model_scoring.tracing.operation_record import Padding, Record, Trace

TOLERANCE = 1e-9  # of float64 logits, relative to the largest


@dataclass(frozen=True)
class Thin:
    """A network without its dead channels."""

    network: nn.Module
    passes: int  # rounds in which dead channels were found
    note: str = ""  # why nothing could be done


def _shift(record: Record, gone: Tensor) -> Tensor:
    """(c_out,) what the constant inputs that go add to each output."""
    counts, constants = record.weights.counts, record.reads.constants
    values = torch.where(gone[record.reads.labels], constants.nan_to_num(0.0), 0.0)
    sums = grouped(record.weight, len(counts)).sum(-1)
    return (sums * values.reshape(len(counts), 1, -1)).sum(-1).flatten()


def _fold(network: nn.Module, trace: Trace, i: int, shift: Tensor) -> None:
    """Keep what constant inputs contributed: never in the weights, which may be ternary."""
    record = trace.records[i]
    layer, after = network.get_submodule(record.layer), trace.batchnorm_after(i)
    norm = trace.records[after] if after is not None else None
    if layer.bias is None and norm and norm.layer and torch.equal(norm.labels, record.labels):
        batchnorm = network.get_submodule(norm.layer)
        if batchnorm.running_mean is not None:
            batchnorm.running_mean -= shift
            return
    if layer.bias is None:
        resize(layer, sizes_of(layer) | {"bias": 1})
    layer.bias += shift


def _narrow_conv(conv: nn.Conv2d, inputs: Tensor, outputs: Tensor, *, own: bool) -> None:
    """inputs (c_in,), outputs (c_out,) bool: channels that stay; `own`: depthwise."""
    groups = conv.groups
    kept = {"in_channels": int(inputs.sum()), "out_channels": int(outputs.sum())}
    if not own:
        parts = conv.weight.unflatten(0, (groups, -1))
        sides = zip(parts, inputs.reshape(groups, -1), outputs.reshape(groups, -1), strict=True)
        weight = torch.cat([part[o][:, i] for part, i, o in sides])
    else:
        weight, groups = conv.weight[outputs], kept["out_channels"]
    tensors = {"weight": weight, "bias": None if conv.bias is None else conv.bias[outputs]}
    _replace(conv, {**kept, "groups": groups}, tensors)


def _narrow_linear(linear: nn.Linear, inputs: Tensor, outputs: Tensor, *, own: bool) -> None:
    sizes = {"in_features": int(inputs.sum()), "out_features": int(outputs.sum())}
    bias = None if linear.bias is None else linear.bias[outputs]
    _replace(linear, sizes, {"weight": linear.weight[outputs][:, inputs], "bias": bias})


def _narrow_batchnorm(norm: nn.Module, inputs: Tensor, outputs: Tensor, *, own: bool) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: getattr(norm, name) for name in names}
    kept = {name: t if t is None else t[outputs] for name, t in tensors.items()}
    _replace(norm, {"num_features": int(outputs.sum())}, kept)


def _narrow_option_a(shortcut: OptionA, inputs: Tensor, outputs: Tensor, *, own: bool) -> None:
    before = shortcut.before
    sides = {"before": outputs[:before], "after": outputs[before + len(inputs) :]}
    _replace(shortcut, {name: int(side.sum()) for name, side in sides.items()}, {})


def _replace(module: nn.Module, sizes: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    resize(module, sizes_of(module) | sizes)
    for name, tensor in tensors.items():
        if tensor is not None:
            getattr(module, name).copy_(tensor)


NARROW: dict[type[nn.Module], Callable[..., None]] = {
    nn.Conv2d: _narrow_conv,
    SameConv2d: _narrow_conv,
    nn.Linear: _narrow_linear,
    nn.BatchNorm1d: _narrow_batchnorm,
    nn.BatchNorm2d: _narrow_batchnorm,
    OptionA: _narrow_option_a,
}


def remove(network: nn.Module, trace: Trace, gone: Tensor) -> None:
    """Fold what the channels that go contribute, then narrow their layers, in place."""
    for i, record in enumerate(trace.records):
        reads = record.layer and record.reads and not record.reads.own
        if reads and bool((shift := _shift(record, gone)).any()):
            _fold(network, trace, i, shift)
    for part in narrowable(trace):
        padding = isinstance(part, Padding)
        own = not padding and part.reads is not None and part.reads.own
        made = part.outputs if padding else part.labels
        seen = part.inputs if padding else (part.reads.labels if part.reads else made)
        if bool(gone[seen].any() or gone[made].any()):
            layer = network.get_submodule(part.layer)
            NARROW[type(layer)](layer, ~gone[seen], ~gone[made], own=own)


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
    with one_thread():
        traced = trace(original, shape)
        dead = dead_channels(traced)
        if not traced.followed:
            return Thin(network, 0, "its code cannot be followed without an image")
        if not dead.rounds:
            return Thin(network, 0, "no channel is dead")
        work = deepcopy(original)
        remove(work, traced, dead.gone)
    if not _same_function(original, work, shape):
        return Thin(network, 0, "its code counts on the widths it has")
    return Thin(work.float(), dead.rounds)
