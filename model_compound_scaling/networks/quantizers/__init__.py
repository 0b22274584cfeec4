"""Activations of few bits: the module that stands for one in a network, and its arithmetic."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__, activation_quantizer="ActivationQuantizer code_range first_step quantize"
)
