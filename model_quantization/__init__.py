"""Stage 2: entropy-constrained trained ternarization (EC2T) and pruning (ECP)."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    two_phases="Quantizing quantize_point",
    grid="grid_points",
    layer_selection="pruned_names ternarized_names",
    gamma_search="Goal solve_gamma",
)
