"""Files of unknown origin: nothing in them runs, and none takes more memory than its bytes."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    zip_structure="check",
    pickle_claims="Refused",
    description_limits="Bounds check_description runs_foreign_code",
)
