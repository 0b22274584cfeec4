"""Images in, batches out: the table of data sets, how each is read, augmentation, loaders."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    datasets="DATASETS find_dataset",
    loading="Data DataOptions load_data",
    batches="Loader Part",
    errors="UserError DataError",
)
