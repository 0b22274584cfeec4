"""A network as a program of steps: from torch's graph to the work of kernels."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    operations="lower",
    steps="Program Convolution Linear Codes",
)
