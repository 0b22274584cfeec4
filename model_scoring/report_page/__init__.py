"""A page about a scored network and all that were tried before it: one self-contained HTML file."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    run_folders="Trial published_parameters read_trials",
    subject="Asked Subject gather recorded_figures",
    page="render",
)
