"""The method on tensors: no files, no flags."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    ternarizer="Ternarizer",
    latent_layers="LatentLayers",
    ternary_layers="TernaryLayers",
    multilevel_layers="MultiLevelLayers",
    flat_layers="Segments",
    assignment="assign find_thresholds largest_lambda probabilities",
)
