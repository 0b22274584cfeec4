"""load_data: from a data set's name and the user's wishes to loaders."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data.batches import WHOLE, CachedLoader, Loader, Part, Preparation, Schedule, to_channels
from data.datasets import AUGMENT, EVAL_CROPS, Dataset, Stats, choose_stats, find_dataset, variant
from data.errors import DataError, UserError, choose
from data.file_loader import FileLoader, Reading
from data.image_files import BadImages, Tree, decode_all
from data.sources import READERS, Source
from data.transforms import eval_transform, train_transform

Splits = dict[str, Source | Tree]


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read, what becomes of its images, and which batches a process gets."""

    data_path: str | os.PathLike | None = None  # None: downloaded, if the set can be
    splits: Sequence[str] = ("train", "val")
    image_size: int | None = None  # None, here and below: the data set's own
    channels: int | None = None  # 1 or 3; images are converted
    normalize: str | Sequence[Sequence[float]] = "dataset"  # "imagenet", "none" or (mean, std)
    augment: str = "default"  # the data set's recipe; or "flip-crop", "none"
    eval_crop: str = "standard"  # of large images: centre 224 of 256, or "full"
    batch_size: int = 128  # of all processes together
    val_batch_size: int = 512
    part: Part = WHOLE  # the share of each batch that this process gets
    seed: int = 0
    device: str | torch.device = "cpu"
    workers: int = 4  # processes that decode files; results do not depend on their number
    worker_init: Callable[[int], None] | None = None  # each begins with worker_init(its number)
    cache_gb: float = 4.0  # 10^9 bytes: folders of small images up to this are held in memory
    skip_bad_images: int = 0  # unreadable files left out; if read while training, in each process


@dataclass(frozen=True)
class Data:
    """A data set ready for use; a split that was not asked for is None."""

    name: str
    classes: int
    class_names: list[str]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Loader | None
    val: Loader | None


def load_data(name: str, options: DataOptions | None = None, **changes: object) -> Data:
    """The data set `name` (a key of DATASETS, in any case) as loaders of normalised batches.

    `changes` are fields of DataOptions by name. Raises UserError for values that make no sense,
    DataError for missing files, TypeError for a field that does not exist.
    """
    options = replace(options or DataOptions(), **changes)
    row = find_dataset(name, options.image_size)
    options = replace(
        options,
        image_size=options.image_size or row.image_size,
        channels=options.channels or row.channels,
    )
    choose("--augment", options.augment, AUGMENT)
    choose("--eval-crop", options.eval_crop, EVAL_CROPS)
    if (least := min(options.batch_size, options.val_batch_size)) < 1:
        raise UserError(f"--batch-size must be at least 1, not {least}")
    stats = choose_stats(row, options.normalize, options.channels)
    bad = BadImages(options.skip_bad_images)
    sources, class_names = read_splits(row, options, bad)
    loaders = {
        split: make_loader(split, source, row=row, options=options, stats=stats, bad=bad)
        for split, source in sources.items()
    }
    return Data(
        name=row.name,
        classes=len(class_names),
        class_names=class_names,
        channels=options.channels,
        image_size=options.image_size,
        mean=stats[0],
        std=stats[1],
        train=loaders.get("train"),
        val=loaders.get("val"),
    )


def read_splits(row: Dataset, options: DataOptions, bad: BadImages) -> tuple[Splits, list[str]]:
    """Each split, in memory if it is to be held there, and the names of the classes."""
    root = Path(options.data_path).expanduser() if options.data_path else None
    sources = {split: READERS[row.source](row, split, root) for split in options.splits}
    class_names = common_classes(row, sources)
    require_batches(row, sources, options)
    trees = [source for source in sources.values() if isinstance(source, Tree)]
    size = 3 * options.image_size**2 * sum(len(tree.paths) for tree in trees)
    if row.cached and trees and size <= 1e9 * options.cache_gb:
        bad.shown = options.part.this == 0  # all processes find the same
        for split, tree in sources.items():
            images, readable = decode_all(tree.paths, options.image_size, bad)
            if not len(images):
                raise DataError(f"no image can be read: {sorted(bad.names)[0]}")
            sources[split] = Source(images, tree.labels[readable], tree.class_names)
        require_batches(row, sources, options)  # of the images that can be read
    return sources, class_names


def make_loader(
    split: str,
    source: Source | Tree,
    *,
    row: Dataset,
    options: DataOptions,
    stats: Stats,
    bad: BadImages,
) -> Loader:
    """Batches of a split, from memory or from files."""
    train, device = split == "train", torch.device(options.device)
    batch_size = options.batch_size if train else options.val_batch_size
    schedule = Schedule(
        len(source.labels), batch_size=batch_size, train=train, seed=options.seed, part=options.part
    )
    recipe = variant(row.recipe, options.augment) if train and row.cached else None
    prepare = Preparation(recipe, stats, options.seed)
    size, channels = options.image_size, options.channels
    if isinstance(source, Source):
        images, labels = fit(source.images, size, channels).to(device), source.labels.to(device)
        return CachedLoader(images, labels, schedule=schedule, prepare=prepare)
    transform = eval_transform(size, "fit" if row.cached else options.eval_crop)
    if train and not row.cached and options.augment != "none":
        transform = train_transform(size)
    return FileLoader(
        source,
        transform,
        schedule=schedule,
        prepare=prepare,
        image_size=size,
        channels=channels,
        reading=Reading(options.workers, options.worker_init, device, bad),
    )


def require_batches(row: Dataset, sources: Splits, options: DataOptions) -> None:
    """UserError unless training images, if there are any, make batches the processes can share."""
    if "train" not in sources:
        return
    images = len(sources["train"].labels)
    if options.batch_size > images:
        raise UserError(
            f"--batch-size {options.batch_size} is more than the {images} training images of "
            f"{row.name}"
        )
    if options.batch_size % options.part.of:
        raise UserError(
            f"--batch-size {options.batch_size}, that of all processes together, is no multiple of "
            f"their number, {options.part.of}"
        )


def common_classes(row: Dataset, sources: Splits) -> list[str]:
    """The class names, the same in all splits and as many as the table says."""
    names = [source.class_names for source in sources.values()]
    for other in names[1:]:
        if other != names[0]:
            first = sorted(set(names[0]) ^ set(other))[0]
            raise DataError(
                f"--data-path: {' and '.join(sources)} must have the same class folders, but "
                f"{first!r} is in one of them only"
            )
    if row.classes not in (None, len(names[0])):
        raise DataError(
            f"--data-path: {row.name} has {row.classes} classes, but {len(names[0])} class folders "
            "were found; --dataset ImageFolder takes any number"
        )
    return names[0]


def fit(images: Tensor, size: int, channels: int) -> Tensor:
    """uint8 images (N, C, H, W) at size x size (bilinear, antialiased) with these channels."""
    images = to_channels(images, channels)
    if images.shape[-1] == size:
        return images
    from torchvision.transforms.v2 import functional as TF  # takes 1.5 s

    return TF.resize(images, [size, size], antialias=True)
