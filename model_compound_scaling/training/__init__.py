"""One step and one loop for both training stages."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    loop="Phase run_epochs",
    step="TrainStep",
    evaluation="evaluate require_fit",
    optimizers="load_optimizer make_sgd",
    recipe="Recipe",
    distillation="Distillation",
    weight_average="Average",
)
