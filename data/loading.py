"""load_data: from a data set's name and the user's wishes to loaders."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from data.batches import WHOLE, CachedLoader, Loader, Part, Preparation, Schedule, to_channels
from data.datasets import (
    AUGMENT,
    EVAL_CROPS,
    Dataset,
    choose_stats,
    find_dataset,
    variant,
)
from data.errors import DataError, UserError, choose
from data.file_loader import FileLoader
from data.image_files import BadImages, Tree, decode_all
from data.sources import READERS, Source
from data.transforms import eval_transform, train_transform

Splits = dict[str, Source | Tree]


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


def load_data(
    name: str,
    *,
    data_path: str | os.PathLike | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    normalize: str | Sequence[Sequence[float]] = "dataset",
    augment: str = "default",
    eval_crop: str = "standard",
    batch_size: int = 128,
    val_batch_size: int = 512,
    workers: int = 4,
    worker_init: Callable[[int], None] | None = None,
    cache_gb: float = 4.0,
    skip_bad_images: int = 0,
    part: Part = WHOLE,
    seed: int = 0,
    device: str | torch.device = "cpu",
    splits: Sequence[str] = ("train", "val"),
) -> Data:
    """The data set `name` (a key of DATASETS, in any case) as loaders of normalised batches.

    image_size and channels (1 or 3) default to the data set's own; images are converted. normalize:
    "dataset", "imagenet", "none" or a (mean, std) pair for pixels in 0..1. augment: "default" (the
    data set's recipe), "flip-crop" or "none". eval_crop, for sets read from files: "standard"
    (centre 224 of 256) or "full". workers: processes that decode files; results do not depend on
    their number; each begins with worker_init(its number). cache_gb: folders of small images are
    held in memory up to 10^9 times this many bytes. skip_bad_images: how many files may be
    unreadable; with several processes, and files read while training, in each of them. part: the
    share of each batch that this process gets; batch_size is that of all processes. Raises
    UserError for values that make no sense, DataError for missing files.
    """
    row = find_dataset(name, image_size)
    choose("--augment", augment, AUGMENT)
    choose("--eval-crop", eval_crop, EVAL_CROPS)
    if min(batch_size, val_batch_size) < 1:
        raise UserError(f"--batch-size must be at least 1, not {min(batch_size, val_batch_size)}")
    size, channels = image_size or row.image_size, channels or row.channels
    stats = choose_stats(row, normalize, channels)
    root = Path(data_path).expanduser() if data_path else None
    sources = {split: READERS[row.source](row, split, root) for split in splits}
    class_names = common_classes(row, sources)
    if "train" in sources:
        require_batches(row, len(sources["train"].labels), batch_size, part)
    bad = BadImages(skip_bad_images)
    trees = [source for source in sources.values() if isinstance(source, Tree)]
    fits = 3 * size**2 * sum(len(tree.paths) for tree in trees) <= 1e9 * cache_gb
    if row.cached and trees and fits:
        bad.shown = part.this == 0  # all processes find the same
        sources = {split: decoded(tree, size, bad) for split, tree in sources.items()}
        if "train" in sources:
            require_batches(row, len(sources["train"].labels), batch_size, part)

    def make_loader(split: str, source: Source | Tree) -> Loader:
        train = split == "train"
        schedule = Schedule(
            len(source.labels),
            batch_size=batch_size if train else val_batch_size,
            train=train,
            seed=seed,
            part=part,
        )
        recipe = variant(row.recipe, augment) if train and row.cached else None
        prepare = Preparation(recipe, stats, seed)
        if isinstance(source, Source):
            images = fit(source.images, size, channels).to(device)
            labels = source.labels.to(device)
            return CachedLoader(images, labels, schedule=schedule, prepare=prepare)
        transform = eval_transform(size, "fit" if row.cached else eval_crop)
        if train and not row.cached and augment != "none":
            transform = train_transform(size)
        return FileLoader(
            source,
            transform,
            schedule=schedule,
            prepare=prepare,
            image_size=size,
            channels=channels,
            workers=workers,
            worker_init=worker_init,
            device=torch.device(device),
            bad=bad,
        )

    return Data(
        name=row.name,
        classes=len(class_names),
        class_names=class_names,
        channels=channels,
        image_size=size,
        mean=stats[0],
        std=stats[1],
        train=make_loader("train", sources["train"]) if "train" in sources else None,
        val=make_loader("val", sources["val"]) if "val" in sources else None,
    )


def require_batches(row: Dataset, images: int, batch_size: int, part: Part) -> None:
    """UserError unless the training images make batches that the processes can share."""
    if batch_size > images:
        raise UserError(
            f"--batch-size {batch_size} is more than the {images} training images of {row.name}"
        )
    if batch_size % part.of:
        raise UserError(
            f"--batch-size {batch_size}, that of all processes together, is no multiple of "
            f"their number, {part.of}"
        )


def decoded(tree: Tree, size: int, bad: BadImages) -> Source:
    """A tree's images in memory, without those that cannot be read."""
    images, readable = decode_all(tree.paths, size, bad)
    if not len(images):
        raise DataError(f"no image can be read: {sorted(bad.names)[0]}")
    return Source(images, tree.labels[readable], tree.class_names)


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
    return images if images.shape[-1] == size else TF.resize(images, [size, size], antialias=True)
