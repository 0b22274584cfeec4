"""Batches on the device from a data set in memory; every epoch can be repeated exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.augmentation import augment, luma, normalize, to_float
from data.datasets import Recipe, Stats
from data.stateless_random import shuffled

Batch = tuple[Tensor, Tensor]  # float32 (B, C, H, W) and int64 (B,), both on the device


class Part(NamedTuple):
    """Which images of every batch a process gets: each `of`-th, from number `this` on."""

    this: int
    of: int


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Schedule:
    """Which samples are in which batch of an epoch: shuffled for training, else as they are.

    In training a last batch with less than two images for a process is left out: BatchNorm needs
    two.
    """

    samples: int
    batch_size: int  # of all processes together
    train: bool
    seed: int
    part: Part

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest >= 2 * self.part.of if self.train else rest > 0)

    def images_in(self, batch: int) -> int:
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """The indices (int64, CPU) of this process' images, batch by batch."""
        indices = torch.arange(self.samples)
        if self.train:
            indices = shuffled(self.seed, epoch, self.samples)
        for index in indices.split(self.batch_size)[first : len(self)]:
            yield index[self.part.this :: self.part.of]


class Preparation(NamedTuple):
    """What becomes of a batch on the device: augmented by a recipe, if there is one, and
    normalised."""

    recipe: Recipe | None
    stats: Stats
    seed: int

    def __call__(self, images: Tensor, epoch: int, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of the samples `index` -> float32 of the same shape."""
        mean, std = self.stats
        if self.recipe is None:
            return normalize(to_float(images), mean, std)
        how = {"recipe": self.recipe, "mean": mean, "std": std}
        return augment(images, **how, seed=self.seed, epoch=epoch, index=index)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (B, 1 or 3, H, W) with 1 channel (luma of the colours) or 3 (grey replicated)."""
    if images.shape[1] < channels:
        return images.expand(-1, channels, -1, -1).contiguous()
    if images.shape[1] > channels:
        return luma(images.float()).round_().byte()
    return images


class Loader:
    """What training and evaluation see of a data set: the batches of any epoch, repeatable."""

    def __init__(self, schedule: Schedule, prepare: Preparation) -> None:
        self.schedule, self.prepare = schedule, prepare
        self.samples = schedule.samples  # images in the data set

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.schedule)

    def images_in(self, batch: int) -> int:
        """Images in a batch (counted from 0) of all processes together."""
        return self.schedule.images_in(batch)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on; the same call gives the same batches."""
        raise NotImplementedError


class CachedLoader(Loader):
    """A data set held on the device as uint8 (N, C, H, W); batches are augmented there."""

    def __init__(
        self, images: Tensor, labels: Tensor, *, schedule: Schedule, prepare: Preparation
    ) -> None:
        super().__init__(schedule, prepare)
        self.images, self.labels = images, labels

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for index in self.schedule.epoch(epoch, first):
            here = index.to(self.images.device, non_blocking=True)
            yield self.prepare(self.images[here], epoch, index), self.labels[here]
