"""What a network costs: storage formats, rule sets, score, report."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    scoring="Score Total score",
    settings="RULE_SETS Settings",
    costs="Count",
    report="summary table to_csv to_dict",
)
