"""What becomes of a data set's images: which are in which batch, and how a batch is prepared on
the device. Every epoch can be repeated exactly."""

import os
from collections.abc import Callable, Iterator, Sequence
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
    val_batch_size: int | None = None  # of all processes together; None: see evaluation_batch
    part: Part = WHOLE  # the share of each batch that this process gets
    seed: int = 0
    holdout: float = 0.0  # percent of each class' training images that are `val`, see hold_out
    holdout_seed: int = 0
    device: str | torch.device = "cpu"
    class_names: Sequence[str] = ()  # labels count in this order; (): in the data set's own
    workers: int | None = None  # processes that decode files; results do not depend on their number
    sharing: int = 1  # processes on this machine, which share its cores; decides None above
    worker_init: Callable[[int], None] | None = None  # each begins with worker_init(its number)
    cache_gb: float = 4.0  # 10^9 bytes: folders of small images up to this are held in memory
    skip_bad_images: int = 0  # unreadable files left out; if read while training, in each process


@dataclass(frozen=True)
class Schedule:
    """Which samples are in which batch of an epoch: shuffled for training, else as they are. In
    training a last batch of less than two images a process is left out: BatchNorm needs two."""

    samples: int
    batch_size: int  # of all processes together
    train: bool
    seed: int
    part: Part

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest >= 2 * self.part.of if self.train else rest > 0)

    def images_in(self, batch: int) -> int:
        """Images in a batch (counted from 0) of all processes together."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """The indices (int64, CPU) of this process' images, batch by batch."""
        every = torch.arange(self.samples)
        indices = shuffled(self.seed, epoch, self.samples) if self.train else every
        for index in indices.split(self.batch_size)[first : len(self)]:
            yield index[self.part.this :: self.part.of]


AT_ONCE = 512  # images; more are no faster


def evaluation_batch(image_size: int, device: str | torch.device, processes: int = 1) -> int:
    """The batch size of evaluation, of all processes together, that suits the kind of device."""
    pixels = 2**20 if torch.device(device).type == "cpu" else 2**25  # with more it is slower
    return processes * max(1, min(AT_ONCE, pixels // image_size**2))


class Preparation(NamedTuple):
    """A batch on the device is augmented by the recipe, if there is one, and normalised."""

    recipe: Recipe | None
    stats: Stats
    seed: int

    def __call__(self, images: Tensor, epoch: int | Tensor, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of the samples `index`, on the same device -> float32 of the same
        shape."""
        mean, std = self.stats
        if self.recipe is None:
            return normalize(to_float(images), mean, std)
        # all that the randomness depends on, so that workers, batches and resuming change nothing
        random = {"seed": self.seed, "epoch": epoch, "index": index}
        return augment(images, recipe=self.recipe, mean=mean, std=std, **random)


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
        self.images_in = schedule.images_in  # (batch) -> images, of all processes together

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.schedule)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on; the same call gives the same batches."""
        raise NotImplementedError


class Replayed:
    """A function of tensors of always the same shapes, on a GPU recorded in a CUDA graph: hundreds
    of small kernels then cost the launch of one."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function, self.graph = function, None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.graph is None:
            self.record(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)  # the next call overwrites them

    def record(self, inputs: tuple[Tensor, ...]) -> None:
        """Call the function once as usual, which brings libraries and constants to the device, and
        once for the graph, which goes on working with the memory of this call."""
        self.inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # other threads, as NCCL's, may go on using the device
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = self.function(*self.inputs)


class CachedLoader(Loader):
    """A data set held on the device as uint8 (N, C, H, W); batches are augmented there."""

    def __init__(self, images: Tensor, labels: Tensor, schedule: Schedule, prepare: Preparation):
        super().__init__(schedule, prepare)
        self.images, self.labels = images, labels
        self.replayed = Replayed(self.batch)

    def batch(self, epoch: Tensor, index: Tensor) -> Batch:
        """The images and labels of the samples `index`; all on the device."""
        return self.prepare(self.images[index], epoch, index), self.labels[index]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        device, number = self.images.device, torch.full((), epoch, device=self.images.device)
        whole = self.schedule.batch_size // self.schedule.part.of
        graph = device.type == "cuda" and self.prepare.recipe is not None
        for index in self.schedule.epoch(epoch, first):
            batch = self.replayed if graph and len(index) == whole else self.batch
            yield batch(number, index.to(device, non_blocking=True))
