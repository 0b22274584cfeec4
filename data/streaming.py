"""Batches from image files, decoded by worker processes while the network trains."""

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from data.augment import normalize, to_float
from data.errors import DataError
from data.images import Tree, read_image
from data.loaders import Batch, Stats, batches, order, to_channels
from data.randomness import sample_seed

Transform = Callable[[Image.Image], Tensor]


class FileDataset(Dataset):
    """Decodes and transforms one file; its keys are (epoch, index)."""

    def __init__(self, tree: Tree, transform: Transform, seed: int):
        self.tree, self.transform, self.seed = tree, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | DataError:
        epoch, index = key
        try:
            image = read_image(self.tree.paths[index])
        except DataError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reset the GPU's generator, used by dropout, too.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            return self.transform(image), self.tree.labels[index]


def collate(items: list[tuple[Tensor, Tensor] | DataError]) -> Batch | DataError:
    """Stack images and labels, or hand on the first error."""
    error = next((item for item in items if isinstance(item, DataError)), None)
    return error or tuple(map(torch.stack, zip(*items, strict=True)))


class EpochBatches:
    """Batch sampler whose keys carry the epoch, so that workers that live on know it."""

    def __init__(self, samples: int, *, batch_size: int, train: bool, seed: int):
        self.samples, self.batch_size, self.train, self.seed = samples, batch_size, train, seed
        self.epoch = 0

    def __len__(self) -> int:
        return batches(self.samples, self.batch_size, self.train)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = order(self.samples, self.seed, self.epoch, self.train).split(self.batch_size)
        for index in indices[: len(self)]:
            yield [(self.epoch, i) for i in index.tolist()]


class FileLoader:
    """A data set read from files by worker processes; normalised on the device."""

    def __init__(
        self,
        tree: Tree,
        transform: Transform,
        *,
        batch_size: int,
        train: bool,
        channels: int,
        stats: Stats,
        seed: int,
        workers: int,
        device: torch.device,
    ):
        self.samples, self.channels, self.device = len(tree.paths), channels, device
        self.mean, self.std = stats
        self.sampler = EpochBatches(self.samples, batch_size=batch_size, train=train, seed=seed)
        self.loader = DataLoader(
            FileDataset(tree, transform, seed),
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else each epoch draws from, and moves, the global one
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.sampler.epoch = epoch
        for batch in self.loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            images = to_float(to_channels(images, self.channels))
            yield normalize(images, self.mean, self.std), labels


def train_transform(size: int) -> Transform:
    """The usual ImageNet augmentation; PIL image -> uint8 (3, size, size)."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def eval_transform(size: int, crop: str) -> Transform:
    """The centre of an image for evaluation; PIL image -> uint8 (3, size, size).

    crop "standard": 224 of 256 pixels, or in proportion, bilinear; "full" (EfficientNet): the whole
    shorter side, bicubic.
    """
    resize = {
        "standard": v2.Resize(round(size * 256 / 224)),
        "full": v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
    }[crop]
    return v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
