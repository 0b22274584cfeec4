"""Narrowed networks: layers with fewer channels than their network is built with. A description is
a table `{layer: {attribute: value}}` of the layers' own attributes, plain numbers, for what differs
from the full network only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from data.errors import UserError
from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.efficientnet import SameConv2d
from model_compound_scaling.networks.registry import Widths


class WidthsError(UserError):
    """A description of widths that does not belong to its network."""

    exit_code = 5


@dataclass(frozen=True)
class Narrowing:
    """How a kind of layer is made narrower."""

    sizes: tuple[str, ...]  # attributes that count channels; with "bias": it may gain one
    shape: Callable[[nn.Module], tuple[int, ...]]  # of the weight; vectors have the first of it


_CONV = Narrowing(
    ("in_channels", "out_channels", "groups", "bias"),
    lambda conv: (conv.out_channels, conv.in_channels // conv.groups),
)
_NORM = Narrowing(("num_features",), lambda norm: (norm.num_features,))
NARROWINGS: dict[type[nn.Module], Narrowing] = {
    nn.Conv2d: _CONV,
    SameConv2d: _CONV,
    nn.Linear: Narrowing(
        ("in_features", "out_features", "bias"), lambda fc: (fc.out_features, fc.in_features)
    ),
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    OptionA: Narrowing(("before", "after"), lambda _: ()),
}


def sizes_of(layer: nn.Module) -> dict[str, int]:
    """The attributes that describe a layer of the table."""
    sizes = {name: getattr(layer, name) for name in NARROWINGS[type(layer)].sizes}
    return sizes | ({"bias": int(layer.bias is not None)} if "bias" in sizes else {})


def resize(layer: nn.Module, sizes: dict[str, int]) -> None:
    """Give a layer other sizes, in place: its tensors keep their first entries, a new bias is 0."""
    narrowing = NARROWINGS[type(layer)]
    for name in narrowing.sizes:
        if name != "bias":
            setattr(layer, name, sizes[name])
    shape = narrowing.shape(layer)
    for name, old in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        new = old.detach()
        for dim, size in enumerate(shape[: old.dim()]):
            new = new.narrow(dim, 0, size)
        new = new.clone()
        setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    if sizes.get("bias") and layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(shape[0]))


def describe(full: nn.Module, narrow: nn.Module) -> Widths:
    """What `narrowed` needs to turn the one network into the other."""
    widths, layers = {}, dict(narrow.named_modules())
    for name, layer in full.named_modules():
        if type(layer) in NARROWINGS:
            before, now = sizes_of(layer), sizes_of(layers[name])
            if now != before:
                widths[name] = {key: now[key] for key in now if now[key] != before[key]}
    return widths


def _checked(name: str, layer: nn.Module | None, entry: object) -> dict[str, int]:
    """All sizes of a narrowed layer. Raises WidthsError if the entry describes none."""
    if type(layer) not in NARROWINGS:
        raise WidthsError(f"widths of {name!r}: the network has no such layer to narrow")
    full = sizes_of(layer)
    if not isinstance(entry, dict) or not set(entry) <= set(full):
        raise WidthsError(f"widths of {name!r}: expected some of {', '.join(full)}")
    for key, value in entry.items():
        least = 0 if key in ("bias", "before", "after") else 1
        most = 1 if key == "bias" else full[key]
        if type(value) is not int or not least <= value <= most:
            raise WidthsError(f"widths of {name!r}: {key} must be {least} to {most}")
    sizes = full | entry
    uneven = any(sizes[k] % sizes.get("groups", 1) for k in sizes if k.endswith("_channels"))
    if uneven or sizes.get("bias", 1) < full.get("bias", 0):
        raise WidthsError(f"widths of {name!r}: no such layer can be built from the full one")
    if "groups" in full and sizes["in_channels"] // sizes["groups"] > layer.weight.shape[1]:
        raise WidthsError(f"widths of {name!r}: more inputs per group than the full layer has")
    return sizes


def narrowed(network: nn.Module, widths: Widths) -> nn.Module:
    """The network with the described layers made narrower, in place."""
    if not isinstance(widths, dict):
        raise WidthsError(f"widths must be a table of layers, not a {type(widths).__name__}")
    layers = dict(network.named_modules())
    with torch.no_grad():
        for name, entry in widths.items():
            layer = layers.get(name)
            resize(layer, _checked(name, layer, entry))
    return network
