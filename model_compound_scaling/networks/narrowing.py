"""Narrowed networks: layers with fewer channels than their network is built with.

A description is a table `{layer: {attribute: value}}` of plain numbers, for the layers that differ
from the full network only. The attributes are those of the layers themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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

    sizes: tuple[str, ...]  # attributes that count channels
    shapes: Callable[[nn.Module], dict[str, tuple[int, ...]]]  # tensors, from these attributes
    gains_bias: bool = False  # may get a bias it was not built with


def _conv_shapes(conv: nn.Conv2d) -> dict[str, tuple[int, ...]]:
    c_out = conv.out_channels
    return {"weight": (c_out, conv.in_channels // conv.groups), "bias": (c_out,)}


def _linear_shapes(linear: nn.Linear) -> dict[str, tuple[int, ...]]:
    out = linear.out_features
    return {"weight": (out, linear.in_features), "bias": (out,)}


def _batchnorm_shapes(norm: nn.BatchNorm2d) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return dict.fromkeys(names, (norm.num_features,))


_CONV = Narrowing(("in_channels", "out_channels", "groups"), _conv_shapes, gains_bias=True)
_NORM = Narrowing(("num_features",), _batchnorm_shapes)
NARROWINGS: dict[type[nn.Module], Narrowing] = {
    nn.Conv2d: _CONV,
    SameConv2d: _CONV,
    nn.Linear: Narrowing(("in_features", "out_features"), _linear_shapes, gains_bias=True),
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    OptionA: Narrowing(("before", "after"), lambda _: {}),
}


def sizes_of(layer: nn.Module) -> dict[str, int]:
    """The attributes that describe a layer of the table."""
    narrowing = NARROWINGS[type(layer)]
    sizes = {name: getattr(layer, name) for name in narrowing.sizes}
    return sizes | ({"bias": int(layer.bias is not None)} if narrowing.gains_bias else {})


def _shortened(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor.detach().clone()


def resize(layer: nn.Module, sizes: dict[str, int]) -> None:
    """Give a layer other sizes, in place: its tensors keep their first entries, a new bias is 0."""
    narrowing = NARROWINGS[type(layer)]
    for name in narrowing.sizes:
        setattr(layer, name, sizes[name])
    shapes = narrowing.shapes(layer)
    for name, shape in shapes.items():
        old = getattr(layer, name)
        if isinstance(old, nn.Parameter):
            setattr(layer, name, nn.Parameter(_shortened(old, shape)))
        elif old is not None:
            setattr(layer, name, _shortened(old, shape))
    if narrowing.gains_bias and sizes["bias"] and layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(shapes["bias"]))


def describe(full: nn.Module, narrow: nn.Module) -> Widths:
    """What `narrowed` needs to turn the one network into the other."""
    layers = dict(narrow.named_modules())
    pairs = {
        name: (sizes_of(layer), sizes_of(layers[name]))
        for name, layer in full.named_modules()
        if type(layer) in NARROWINGS
    }
    return {
        name: {key: value for key, value in now.items() if value != before[key]}
        for name, (before, now) in pairs.items()
        if now != before
    }


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
