"""Batches on the device from a data set in memory; every epoch can be repeated exactly."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from data.augment import Recipe, augment, luma, normalize, to_float
from data.randomness import shuffled

Stats = tuple[tuple[float, ...], tuple[float, ...]]
Batch = tuple[Tensor, Tensor]  # float32 (B, C, H, W) and int64 (B,), both on the device


class Loader(Protocol):
    """What training and evaluation see of a data set."""

    samples: int  # images in the data set

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the same call gives the same batches."""


def batches(samples: int, batch_size: int, train: bool) -> int:
    """Number of batches. In training a last batch of one image is left out: BatchNorm needs two."""
    return (
        samples // batch_size if train and samples % batch_size == 1 else -(-samples // batch_size)
    )


def order(samples: int, seed: int, epoch: int, train: bool) -> Tensor:
    """The order of the samples in an epoch: shuffled for training, else as they are."""
    return shuffled(seed, epoch, samples) if train else torch.arange(samples)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (B, 1 or 3, H, W) with 1 channel (luma of the colours) or 3 (grey replicated)."""
    if images.shape[1] < channels:
        return images.expand(-1, channels, -1, -1).contiguous()
    if images.shape[1] > channels:
        return luma(images.float()).round_().byte()
    return images


class CachedLoader:
    """A data set held on the device as uint8 (N, C, H, W); batches are augmented there."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        train: bool,
        recipe: Recipe | None,
        stats: Stats,
        seed: int,
    ):
        self.images, self.labels, self.samples = images, labels, len(images)
        self.batch_size, self.train, self.recipe, self.seed = batch_size, train, recipe, seed
        self.mean, self.std = stats

    def __len__(self) -> int:
        return batches(self.samples, self.batch_size, self.train)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        indices = order(self.samples, self.seed, epoch, self.train).split(self.batch_size)
        for index in indices[: len(self)]:
            here = index.to(self.images.device)
            yield self._prepare(self.images[here], epoch, index), self.labels[here]

    def _prepare(self, images: Tensor, epoch: int, index: Tensor) -> Tensor:
        if self.recipe is None:
            return normalize(to_float(images), self.mean, self.std)
        return augment(
            images,
            recipe=self.recipe,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
            epoch=epoch,
            index=index,
        )
