"""One forward pass, written down as a list of records."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    forward_pass="trace",
    operation_record="Record Trace",
    layer_weights="Weights examine ternary_values",
)
