"""A network as one C file: ternary layers as lists of pixels to add, activations in planes."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    source="CSource Description c_source",
    compiling="Compiled NoCompiler compiled compiler checked largest_deviation",
    names="header_path identifier",
)
