"""Compound scaling itself: grids of networks, trained until one is good enough."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    points="Point cost parse_grid possible_points",
    search="Search",
    trainer="Trainer",
    train_network="Training require_memory train_point",
)
