"""Layers whose inputs are quantized. Each has its quantizer as a child, `LAYER.quantizer`, which a
hook applies to what goes in; nothing else of the network changes. A description is a table
`{layer: "u4"}`: i for signed or u for unsigned, and the bits."""

import math
from collections.abc import Iterable

from torch import Tensor, nn

from model_compound_scaling.networks.narrowing import WidthsError
from model_compound_scaling.networks.quantizers.activation_quantizer import ActivationQuantizer
from model_compound_scaling.networks.registry import ACTIVATION, Activations

LAYERS = (nn.Conv2d, nn.Linear)  # whose inputs can be quantized


def quantize_input(layer: nn.Module, args: tuple) -> tuple:
    """The forward pre-hook. A function, not a method: copies of a network have it, too."""
    return layer.quantizer(args[0]), *args[1:]


def quantize_inputs(network: nn.Module, activations: Activations) -> nn.Module:
    """Give the described layers their quantizers, in place; steps are 1 until they are set.
    WidthsError for a description that does not belong to the network."""
    if not isinstance(activations, dict):
        raise WidthsError(f"activations: a {type(activations).__name__}, not a table of layers")
    layers = dict(network.named_modules())
    for name, kind in activations.items():
        layer = layers.get(name)
        if not isinstance(layer, LAYERS) or hasattr(layer, "quantizer"):
            raise WidthsError(f"activations of {name!r}: the network has no such layer to quantize")
        if not isinstance(kind, str) or not ACTIVATION.fullmatch(kind):
            raise WidthsError(f"activations of {name!r}: expected i or u and 2 to 8 bits, as in u4")
        quantizer = ActivationQuantizer(int(kind[1:]), signed=kind[0] == "i")
        layer.quantizer = quantizer.to(layer.weight.device)
        layer.register_forward_pre_hook(quantize_input)
    return network


def quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """By the names of their layers."""
    layers = ((n, m) for n, m in network.named_modules() if quantize_input in hooks_of(m))
    return {name: layer.quantizer for name, layer in layers}


def hooks_of(module: nn.Module) -> Iterable:
    """Its forward pre-hooks."""
    return module._forward_pre_hooks.values()


def describe(network: nn.Module) -> Activations:
    """What `quantize_inputs` needs to do the same to another network."""
    return {n: f"{'i' if q.signed else 'u'}{q.bits}" for n, q in quantizers(network).items()}


def step_names(activations: Activations) -> set[str]:
    """Of the parameters that a description adds to a network."""
    return {f"{layer}.quantizer.step" for layer in activations}


def positive_steps(activations: Activations, state: dict[str, Tensor]) -> str | None:
    """The first parameter in a network's state dict that is no step: not above 0, or infinite; None
    if all are."""
    names = sorted(step_names(activations))
    return next((n for n in names if not bool(0 < state[n] < math.inf)), None)
