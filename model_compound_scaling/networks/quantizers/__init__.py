"""Activations of few bits: the module that stands for one in a network, its arithmetic, and layers
whose inputs go through one."""

from data.lazy_exports import lazy_exports

BITS = range(2, 9)  # here, where it can be read without torch

__all__, __getattr__ = lazy_exports(
    __name__,
    activation_quantizer="ActivationQuantizer code_range first_step quantize",
    layer_inputs="describe quantize_inputs quantizers step_names",
)
