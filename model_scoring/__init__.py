"""Stage 3: what a network costs in parameters, operations, bytes and energy."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    **{
        "tracing.operation_record": "Record Trace",
        "tracing.forward_pass": "trace",
        "counting.scoring": "Score score",
        "counting.settings": "Settings",
    },
)
