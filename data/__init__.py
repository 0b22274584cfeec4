"""Stage 0: the dataset table, loaders and augmentation."""

from data.load import Data, load_data
from data.loaders import Loader
from data.table import DATASETS

__all__ = ["DATASETS", "Data", "Loader", "load_data"]
