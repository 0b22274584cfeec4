"""How each kind of data set is read: (row of the table, split, data_path) -> Source or Tree."""

import fcntl
import gzip
import io
import math
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.datasets import Dataset
from data.errors import DataError, UserError
from data.image_files import Tree, list_tree
from data.shapes import FIGURES, make_shapes
from data.stateless_random import shuffled

HOLDOUT = -1  # in place of an epoch, so that its draws are nobody else's
DOWNLOADS = Path(__file__).parent / "downloads"


@dataclass(frozen=True)
class Source:
    """One split in memory: uint8 images (N, C, H, W), int64 labels (N,), the classes' names."""

    images: Tensor
    labels: Tensor
    class_names: list[str]

    def take(self, which: Tensor) -> "Source":
        """Those images only; `which`: bool (N,)."""
        return replace(self, images=self.images[which], labels=self.labels[which])


def hold_out(labels: Tensor, percent: float, seed: int) -> Tensor:
    """Which images decide and are not trained on, bool (N,): of each class so many percent, at
    least one, drawn by seed. UserError if all of a class would be."""
    counts = labels.bincount()
    quota = (counts * percent / 100).round().long().clamp(min=1)
    if bool((quota >= counts).any()):
        raise UserError(f"--holdout {percent:g} leaves no training image of a class")
    order = shuffled(seed, HOLDOUT, len(labels))
    order = order[labels[order].argsort(stable=True)]  # class by class
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order[place < quota[labels[order]]]] = True
    return held


def read_cifar(row: Dataset, split: str, data_path: Path | None) -> Source:
    """By torchvision's CIFAR classes, which check the files against their MD5 sums."""
    import torchvision  # not needed for the other data sets, and takes 1.5 s

    train, dataset_class = split == "train", getattr(torchvision.datasets, row.name)
    folder = dataset_class.base_folder
    if data_path is None:
        dataset = download(row.name, lambda: dataset_class(DOWNLOADS, train, download=True), folder)
    else:
        try:
            with quiet():
                dataset = dataset_class(data_path, train)
        except Exception as error:
            raise DataError(
                f"--data-path: no complete {row.name} in {data_path}: expected the unpacked folder "
                f"{data_path / folder}"
            ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Source(images, torch.tensor(dataset.targets), list(dataset.classes))


def read_mnist(row: Dataset, split: str, data_path: Path | None) -> Source:
    """From idx files, as torchvision lays them or plain .gz files in --data-path."""
    import torchvision  # see above

    raw, dataset_class = f"{row.name}/raw", getattr(torchvision.datasets, row.name)
    if data_path is None:
        download(row.name, lambda: dataset_class(DOWNLOADS, download=True), raw)
    folders = [data_path, data_path / raw] if data_path else [DOWNLOADS / raw]
    prefix = {"train": "train", "val": "t10k"}[split]
    images = read_idx(f"{prefix}-images-idx3-ubyte", folders)
    labels = read_idx(f"{prefix}-labels-idx1-ubyte", folders)
    if len(images) != len(labels):
        raise DataError(
            f"--data-path: {folders[0]} has {len(images)} images for {len(labels)} labels in "
            f"{prefix}-*: fetch {row.name} again"
        )
    return Source(images[:, None], labels.long(), list(dataset_class.classes))


def read_idx(name: str, folders: list[Path]) -> Tensor:
    """The idx file of bytes `name` or `name`.gz in the first folder that has it: 00 00 08 <rank>,
    big-endian sizes, then the values. DataError if none has, or it is damaged."""
    candidates = [folder / (name + end) for folder in folders for end in ("", ".gz")]
    path = next(filter(os.path.isfile, candidates), None)
    if path is None:
        raise DataError(f"--data-path: expected {candidates[0]} or {candidates[1].name} there")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if not rank or len(content) != start + math.prod(shape):
        raise DataError(f"cannot read {path}: not a complete idx file of bytes, fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torchvision's progress bars, and warnings about the age of its pickles, out of logs."""
    noise = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with redirect_stdout(noise), redirect_stderr(noise), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def download(name: str, fetch: Callable[[], object], folder: str) -> object:
    """Run torchvision's `fetch`, which downloads what an earlier call has not."""
    try:
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        with (DOWNLOADS / f".{name}.lock").open("w") as lock, quiet():
            fcntl.flock(lock, fcntl.LOCK_EX)  # many processes may start together
            return fetch()
    except Exception as error:  # no network, full disk, changed server: all end in the same advice
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot download {name} to {DOWNLOADS} ({reason}): fetch it elsewhere and name the "
            f"folder that holds {folder} with --data-path"
        ) from error


READERS: dict[str, Callable[[Dataset, str, Path | None], Source | Tree]] = {
    "cifar": read_cifar,
    "mnist": read_mnist,
    "folders": lambda row, split, data_path: list_tree(data_path, split),  # decoded in training
    "shapes": lambda row, split, data_path: Source(*make_shapes(split), list(FIGURES)),
}
