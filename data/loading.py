"""load_data: from a data set's name and the user's wishes to loaders."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.batches import (
    CachedLoader,
    DataOptions,
    Loader,
    Preparation,
    Schedule,
    evaluation_batch,
    to_channels,
)
from data.class_names import Classes, match_classes, numbering
from data.datasets import AUGMENT, Dataset, Stat, choose_stats, find_dataset, variant
from data.errors import DataError, UserError, choose
from data.file_loader import BadImages, FileLoader, decode_all
from data.image_files import Tree, eval_transform, train_transform
from data.sources import READERS, Source, hold_out

Splits = dict[str, Source | Tree]


@dataclass(frozen=True)
class Data:
    """A data set ready for use; a split that was not asked for is None."""

    name: str
    classes: int
    class_names: list[str]
    channels: int
    image_size: int
    mean: Stat
    std: Stat
    train: Loader | None = None
    val: Loader | None = None
    renumbered: str = ""  # in words, if labels or their names are not the data set's own
    holdout: float = 0.0  # percent of the training images that `val` is made of, 0: it is the set's
    holdout_seed: int = 0
    reported: Loader | None = None  # then the set's own validation images, which decide nothing


def load_data(name: str, options: DataOptions | None = None, **changes: object) -> Data:
    """The data set `name` (a key of DATASETS, in any case) as loaders of normalised batches.

    `changes` are fields of DataOptions by name. Raises UserError for values that make no sense,
    DataError for missing files, TypeError for a field that does not exist."""
    options = replace(options or DataOptions(), **changes)
    row = find_dataset(name, options.image_size)
    size, channels = options.image_size or row.image_size, options.channels or row.channels
    at_once = options.val_batch_size
    if at_once is None:
        at_once = evaluation_batch(size, options.device, options.part.of)
    options = replace(options, image_size=size, channels=channels, val_batch_size=at_once)
    choose("--augment", options.augment, AUGMENT)
    choose("--eval-crop", options.eval_crop, ("standard", "full"))
    if (least := min(options.batch_size, options.val_batch_size)) < 1:
        raise UserError(f"--batch-size must be at least 1, not {least}")
    row = replace(row, stats=choose_stats(row, options.normalize, channels))
    bad = BadImages(options.skip_bad_images)
    sources, classes = read_splits(row, options, bad)
    loaders = {
        split: make_loader(split, source, row=row, options=options, bad=bad)
        for split, source in sources.items()
    }
    found = next(iter(sources.values())).class_names
    names = classes.names
    renumbered = classes.renumbered() or numbering(found, options.class_names)
    return Data(
        row.name, len(names), names, channels, size, *row.stats, **loaders, renumbered=renumbered,
        holdout=options.holdout, holdout_seed=options.holdout_seed,
    )  # fmt: skip


def read_splits(row: Dataset, options: DataOptions, bad: BadImages) -> tuple[Splits, Classes]:
    """Each split, in memory if it is to be held there, and the classes."""
    root = Path(options.data_path).expanduser() if options.data_path else None
    sources = {split: READERS[row.source](row, split, root) for split in options.splits}
    classes = match_classes(common_classes(row, sources), options.class_names)
    if classes.renumbered():
        new = torch.tensor(classes.labels)
        sources = {k: replace(source, labels=new[source.labels]) for k, source in sources.items()}
    if options.holdout and "train" in sources:
        train, val = sources["train"], sources["val"]
        held = hold_out(train.labels, options.holdout, options.holdout_seed)
        sources = {"train": train.take(~held), "val": train.take(held), "reported": val}
    require_batches(row, sources, options)
    trees = [source for source in sources.values() if isinstance(source, Tree)]
    size = 3 * options.image_size**2 * sum(len(tree.paths) for tree in trees)  # bytes
    if row.cached and trees and size <= 1e9 * options.cache_gb:
        bad.shown = options.part.this == 0  # all processes find the same
        for split, tree in sources.items():
            images, readable = decode_all(tree.paths, options.image_size, bad)
            if not len(images):
                raise DataError(f"no image can be read: {sorted(bad.names)[0]}")
            sources[split] = Source(images, tree.labels[readable], tree.class_names)
        require_batches(row, sources, options)  # of the images that can be read
    return sources, classes


def make_loader(
    split: str, source: Source | Tree, *, row: Dataset, options: DataOptions, bad: BadImages
) -> Loader:
    """Batches of a split, from memory or from files."""
    train, size, device = split == "train", options.image_size, options.device
    batch_size = options.batch_size if train else options.val_batch_size
    schedule = Schedule(len(source.labels), batch_size, train, options.seed, options.part)
    recipe = variant(row.recipe, options.augment) if train and row.cached else None
    shared = {"schedule": schedule, "prepare": Preparation(recipe, row.stats, options.seed)}
    if isinstance(source, Source):
        images = to_channels(source.images, options.channels)
        if images.shape[-1] != size:
            from torchvision.transforms.v2 import functional as TF  # takes 1.5 s

            images = TF.resize(images, [size, size], antialias=True)  # bilinear
        return CachedLoader(images.to(device), source.labels.to(device), **shared)
    transform = eval_transform(size, "fit" if row.cached else options.eval_crop)
    if train and not row.cached and options.augment != "none":
        transform = train_transform(size)
    return FileLoader(source, transform, **shared, options=options, bad=bad)


def require_batches(row: Dataset, sources: Splits, options: DataOptions) -> None:
    """UserError unless training images, if there are any, make batches the processes can share."""
    if "train" not in sources:
        return
    n, size, processes = len(sources["train"].labels), options.batch_size, options.part.of
    if size > n:
        raise UserError(f"--batch-size {size} is more than the {n} training images of {row.name}")
    if size % processes:
        raise UserError(
            f"--batch-size {size}, that of all processes together, is no multiple of their number, "
            f"{processes}"
        )


def common_classes(row: Dataset, sources: Splits) -> list[str]:
    """The class names, the same in all splits and as many as the table says."""
    names = [source.class_names for source in sources.values()]
    for other in names[1:]:
        if different := set(names[0]) ^ set(other):
            raise DataError(
                f"--data-path: {' and '.join(sources)} must have the same class folders, but "
                f"{min(different)!r} is in one of them only"
            )
    if row.classes not in (None, len(names[0])):
        raise DataError(
            f"--data-path: {row.name} has {row.classes} classes, but {len(names[0])} class folders "
            "were found; --dataset ImageFolder takes any number"
        )
    return names[0]
