"""What can be built: networks by name, their parts, and narrowed ones."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    registry="REGISTRY NetworkSpec canonical_name default_spec table_row",
    building="build expected_tensors skeleton",
    narrowing="narrowed",
)
