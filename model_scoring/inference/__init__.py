"""Running a network: in 16 bit, and on single images."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__, half_precision="half_precision", prediction="Preparation predict"
)

TOP = 5  # classes shown of each image; here, where it can be read without torch
