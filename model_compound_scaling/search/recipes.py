"""How full-precision networks are trained unless flags say otherwise, by family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Defaults of full-precision training."""

    epochs: int
    weight_decay: float
    schedule: str


DEFAULT_RECIPE = Recipe(200, 5e-4, "cosine")
RECIPES = {"efficientnet": Recipe(90, 1e-4, "step")}
