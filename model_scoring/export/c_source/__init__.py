"""A network as one C file: ternary layers as lists of pixels to add, activations in planes."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    source="CSource Description c_source",
    compiling="Compiled compiled checked largest_deviation",
    names="compiler header_path identifier",
)
