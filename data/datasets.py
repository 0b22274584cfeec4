"""The table of data sets, and what follows from a row of it. A new data set is a new row. Plain
values only, without torch: the command lines read names from here before they load it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.errors import UserError, choose

Stat = tuple[float, ...]  # one value of each channel, of pixels in 0..1
Stats = tuple[Stat, Stat]  # mean and standard deviation
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_STATS = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
SHAPES_STATS = (0.3454, 0.3473, 0.3459), (0.2017, 0.201, 0.2012)  # of the training images
LUMA = (0.2989, 0.587, 0.114)  # brightness as the eye sees it, of red, green and blue


@dataclass(frozen=True)
class Recipe:
    """What is done to a training image held in memory, in this order."""

    flip: bool = False
    pad: int = 0
    jitter: bool = False
    cutout: bool = False


RESIZED_CROP = None  # what is read from files: torchvision's RandomResizedCrop and flip
COLOUR = Recipe(flip=True, pad=4, jitter=True, cutout=True)
SMALL = 64  # image folders up to this many pixels are held in memory


@dataclass(frozen=True)
class Dataset:
    """One data set: where it comes from and what its images are like. `classes` and `image_size`
    are None where the user's folder and --image-size decide. Cached sets are read once and live on
    the device if memory allows, the others are decoded while training."""

    name: str
    source: str  # how it is read: a key of sources.READERS
    stats: Stats
    classes: int | None
    channels: int
    image_size: int | None
    recipe: Recipe | None
    cached: bool = True
    small: "Dataset | None" = None  # takes this row's place for images up to SMALL pixels


# fmt: off
DATASETS = {row.name: row for row in (
    Dataset("CIFAR100", "cifar", CIFAR_STATS, 100, 3, 32, COLOUR),
    Dataset("CIFAR10", "cifar", CIFAR_STATS, 10, 3, 32, COLOUR),
    Dataset("MNIST", "mnist", ((0.1307,), (0.3081,)), 10, 1, 28, Recipe(pad=2)),
    Dataset("FashionMNIST", "mnist", ((0.2860,), (0.3530,)), 10, 1, 28, Recipe(flip=True, pad=2)),
    Dataset("ImageNet", "folders", IMAGENET_STATS, 1000, 3, 224, RESIZED_CROP, cached=False),
    Dataset("ImageFolder", "folders", IMAGENET_STATS, None, 3, None, RESIZED_CROP, cached=False,
            small=Dataset("ImageFolder", "folders", CIFAR_STATS, None, 3, None, COLOUR)),
    Dataset("Shapes", "shapes", SHAPES_STATS, 10, 3, 32, COLOUR),
)}
# fmt: on
AUGMENT = ("default", "flip-crop", "none")
NORMALIZE = ("dataset", "imagenet", "none")


def variant(recipe: Recipe, augment: str) -> Recipe | None:
    """The recipe that `augment` ("default", "flip-crop", "none") makes of a data set's own one."""
    flip_crop = replace(recipe, flip=True, pad=recipe.pad or 4, jitter=False, cutout=False)
    return {"default": recipe, "flip-crop": flip_crop, "none": None}[augment]


def find_dataset(name: str, image_size: int | None) -> Dataset:
    """The row of the table for `name`, at this image size."""
    key = {key.lower(): key for key in DATASETS}.get(name.lower(), name)
    choose("--dataset", key, tuple(DATASETS))
    row = DATASETS[key]
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size must be at least 1, not {image_size}")
    if row.image_size is None and image_size is None:
        raise UserError(f"--dataset {row.name} needs --image-size: its images have no common size")
    return row.small if row.small and image_size <= SMALL else row


def choose_stats(row: Dataset, normalize: str | Sequence[Sequence[float]], channels: int) -> Stats:
    """Mean and standard deviation per channel for `normalize`, for 1 or 3 channels. RGB's serve
    grey images by their luma. That of the means is exact; that of the deviations holds if the
    colours rise and fall together, as they nearly do in photographs."""
    if isinstance(normalize, str):
        choose("--normalize", normalize, NORMALIZE)
        no_change = ((0.0,) * row.channels, (1.0,) * row.channels)
        normalize = {"dataset": row.stats, "imagenet": IMAGENET_STATS, "none": no_change}[normalize]
    mean, std = (tuple(map(float, values)) for values in normalize)
    if len(mean) < channels:
        return mean * channels, std * channels
    if len(mean) == channels:
        return mean, std
    sums = (sum(w * v for w, v in zip(LUMA, values, strict=True)) for values in (mean, std))
    return tuple((total / sum(LUMA),) for total in sums)
