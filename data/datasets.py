"""The table of data sets. A new one is a new row."""

from dataclasses import dataclass

from data.augment import Recipe
from data.readers import Reader, cifar, mnist, read_shapes, read_tree

IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_STATS = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)
MNIST_STATS = ((0.1307,), (0.3081,))
FASHION_STATS = ((0.2860,), (0.3530,))
SHAPES_STATS = (
    (0.3454, 0.3473, 0.3459),
    (0.2017, 0.201, 0.2012),
)  # measured on the training images

RESIZED_CROP = None  # what is read from files: torchvision's RandomResizedCrop and flip
FLIP_CROP = Recipe(flip=True, pad=2)
COLOUR = Recipe(flip=True, pad=4, jitter=True, cutout=True)
SMALL = 64  # image folders up to this many pixels are held in memory


@dataclass(frozen=True)
class Dataset:
    """One data set: where it comes from and what its images are like.

    `classes` and `image_size` are None where the user's folder and --image-size decide. Cached sets
    are read once and live on the device if memory allows, the others are decoded while training.
    """

    name: str
    read: Reader
    stats: tuple[tuple[float, ...], tuple[float, ...]]
    classes: int | None
    channels: int
    image_size: int | None
    recipe: Recipe | None
    cached: bool = True
    small: "Dataset | None" = None  # takes this row's place for images up to SMALL pixels


# fmt: off
ROWS = [
    Dataset("CIFAR100", cifar("CIFAR100", "cifar-100-python"), CIFAR_STATS, 100, 3, 32, COLOUR),
    Dataset("CIFAR10", cifar("CIFAR10", "cifar-10-batches-py"), CIFAR_STATS, 10, 3, 32, COLOUR),
    Dataset("MNIST", mnist("MNIST"), MNIST_STATS, 10, 1, 28, Recipe(pad=2)),
    Dataset("FashionMNIST", mnist("FashionMNIST"), FASHION_STATS, 10, 1, 28, FLIP_CROP),
    Dataset("ImageNet", read_tree, IMAGENET_STATS, 1000, 3, 224, RESIZED_CROP, cached=False),
    Dataset("ImageFolder", read_tree, IMAGENET_STATS, None, 3, None, RESIZED_CROP, cached=False,
            small=Dataset("ImageFolder", read_tree, CIFAR_STATS, None, 3, None, COLOUR)),
    Dataset("Shapes", read_shapes, SHAPES_STATS, 10, 3, 32, COLOUR),
]
# fmt: on
DATASETS = {row.name: row for row in ROWS}
