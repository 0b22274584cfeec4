"""Compound scaling itself: grids of networks, trained until one is good enough."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    points="Point cost parse_grid possible_points",
    search="Search",
    results_table="rows",
    recipes="RECIPES",
    train_network="train_point",
)
