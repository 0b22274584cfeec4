"""load_data: from a data set's name and the user's wishes to loaders."""

import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
from data.datasets import AUGMENT, Dataset, Stat, choose_stats, find_dataset, variant
from data.errors import DataError, UserError, choose
from data.file_loader import FileLoader
from data.image_files import BadImages, Tree, decode_all
from data.sources import READERS, Source
from data.transforms import eval_transform, train_transform

Splits = dict[str, Source | Tree]


class Classes(NamedTuple):
    """The names of the classes by their numbers, and the number of each class of the data set."""

    names: list[str]
    labels: list[int]

    def renumbered(self) -> str:
        """In words, if the numbers are not the data set's own."""
        moved = [(own, label) for own, label in enumerate(self.labels) if own != label]
        if not moved:
            return ""
        own, label = moved[0]
        return (
            f"{len(moved)} of {len(self.labels)} classes are numbered as in the checkpoint, not as "
            f"in the data set: first {reprlib.repr(self.names[label])}, {label} instead of {own}"
        )


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
    renumbered: str = ""  # in words, if labels are not the data set's own


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
    names, renumbered = classes.names, classes.renumbered()
    return Data(
        row.name, len(names), names, channels, size, *row.stats, **loaders, renumbered=renumbered
    )


def read_splits(row: Dataset, options: DataOptions, bad: BadImages) -> tuple[Splits, Classes]:
    """Each split, in memory if it is to be held there, and the classes."""
    root = Path(options.data_path).expanduser() if options.data_path else None
    sources = {split: READERS[row.source](row, split, root) for split in options.splits}
    classes = match_classes(common_classes(row, sources), options.class_names)
    if classes.renumbered():
        new = torch.tensor(classes.labels)
        sources = {k: replace(source, labels=new[source.labels]) for k, source in sources.items()}
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


def match_classes(found: Sequence[str], network: Sequence[str]) -> Classes:
    """The classes `found` in a data set, numbered as the network's of the same names; as they are
    if the network's are not known. Names that only count stand for their numbers, whatever the
    other names. DataError, with the first differences, if the names are others."""
    own = list(range(len(found)))
    if len(network) != len(found) or list(network) == list(found):
        return Classes(list(found), own)
    counted = class_numbers(found), class_numbers(network)
    if any(counted):
        keys = tuple(numbers or own for numbers in counted)
    else:
        keys = tuple([_plain(name) for name in names] for names in (found, network))
        if any(len(set(plain)) < len(plain) for plain in keys):
            keys = found, network
    here, there = _unmatched(found, *keys), _unmatched(network, *keys[::-1])
    if here or there:
        raise DataError(
            f"the data set's classes are not the network's: {here} here, {there} there; choose the "
            "--dataset or --data-path it was trained on, or number them in the data set's order "
            "with --ignore-class-names"
        )
    number = {key: i for i, key in enumerate(keys[1])}
    labels = [number[key] for key in keys[0]]
    if counted[1]:  # the data set knows more
        network = [found[labels.index(i)] for i in own]
    return Classes(list(network), labels)


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Numbers from 0, if the names say no more than that: "0" or "class 1" and so on, from 0 or 1,
    in any order, with or without leading zeros."""
    matches = [re.fullmatch(r"([^0-9]*)([0-9]{1,9})", name) for name in names]
    if not all(matches) or len({match[1] for match in matches}) > 1:
        return None
    numbers = [int(match[2]) for match in matches]
    first = min(numbers)
    if first > 1 or sorted(numbers) != list(range(first, first + len(names))):
        return None
    return [number - first for number in numbers]


def _plain(name: str) -> str:
    """A name without what differs between the spellings of folders and lists, and between machines
    that take the bytes of folders' names for UTF-8 and those that do not."""
    name = name.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return re.sub(r"[\s_/-]+", "", unicodedata.normalize("NFC", name).casefold())


def _unmatched(names: Sequence[str], keys: Sequence[Hashable], others: Sequence[Hashable]) -> str:
    """The first names, and how many more, whose keys are not among the others, or not once."""
    count, others = Counter(keys), set(others)
    pairs = zip(names, keys, strict=True)
    wrong = [name for name, key in pairs if count[key] > 1 or key not in others]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ", ".join(map(reprlib.repr, wrong[:3])) + more
