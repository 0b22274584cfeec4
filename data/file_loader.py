"""Many image files: all read at once into memory, or decoded by worker processes while the network
trains."""

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.batches import Batch, DataOptions, Loader, Preparation, Schedule, to_channels
from data.errors import DataError, printable
from data.image_files import Transform, Tree, eval_transform, read_image
from data.stateless_random import sample_seed

CHUNK = 128  # files per task of a thread; one each would cost more than decoding a small one
Item = tuple[Tensor, Tensor, int]  # uint8 (3, H, W), label, index


class BadImages:
    """Unreadable files: up to `limit` of them are left out and, if `shown`, named on stderr."""

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.names, self.shown = limit, set(), True

    def add(self, errors: Iterable[DataError]) -> None:
        """Count and name the new ones; DataError for one more than the limit."""
        for error in errors:
            if str(error) in self.names:
                continue
            if len(self.names) == self.limit:
                hint = "--skip-bad-images N leaves out up to N such files"
                hint = f"more than --skip-bad-images {self.limit}" if self.limit else hint
                raise DataError(f"{error} ({hint})")
            self.names.add(str(error))
            if self.shown:
                count = f"{len(self.names)} of at most {self.limit}"
                print(f"warning: {printable(error)}; left out ({count})", file=sys.stderr)


def decode_all(paths: np.ndarray, size: int, bad: BadImages) -> tuple[Tensor, Tensor]:
    """Read all files, in threads, into one uint8 tensor (n, 3, size, size); which those n are
    (bool, one for each path): not those that cannot be read, as far as `bad` allows."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    readable = torch.ones(len(paths), dtype=torch.bool)
    transform = eval_transform(size, "fit")

    def decode(chunk: range) -> list[DataError]:
        errors = []
        for i in chunk:
            try:
                images[i] = transform(read_image(paths[i]))
            except DataError as error:
                errors.append(error)
                readable[i] = False
        return errors

    chunks = [range(len(paths))[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with (
        ThreadPoolExecutor(min(8, usable_cores())) as pool,
        tqdm(total=len(paths), desc="reading images", unit="img", disable=None) as progress,
    ):
        for chunk, errors in zip(chunks, pool.map(decode, chunks), strict=True):
            bad.add(errors)
            progress.update(len(chunk))
    return images if readable.all() else images[readable], readable


class FileDataset(Dataset):
    """Decodes and transforms one file; its keys are (epoch, index)."""

    def __init__(self, tree: Tree, transform: Transform, seed: int):
        self.tree, self.transform, self.seed = tree, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Item | DataError:
        epoch, index = key
        try:
            image = read_image(self.tree.paths[index])
        except DataError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reset the GPU's generator, used by dropout, too.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            return self.transform(image), self.tree.labels[index], index


def collate(items: list[Item | DataError]) -> tuple[tuple[Tensor, ...] | None, list[DataError]]:
    """(images, labels, indices) of the files that can be read, None if none; the others' errors."""
    errors = [item for item in items if isinstance(item, DataError)]
    good = [item for item in items if not isinstance(item, DataError)]
    if not good:
        return None, errors
    images, labels, index = zip(*good, strict=True)
    return (torch.stack(images), torch.stack(labels), torch.tensor(index)), errors


class EpochBatches:
    """Batch sampler whose keys carry the epoch, so that workers that live on know it."""

    def __init__(self, schedule: Schedule):
        self.schedule, self.epoch, self.first = schedule, 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.schedule.epoch(self.epoch, self.first):
            yield [(self.epoch, i) for i in index.tolist()]


class QuietDataLoader(DataLoader):
    """torch's loader without its warning about more workers than cores: the user asked for them."""

    def check_worker_number_rationality(self) -> None:
        pass


def usable_cores() -> int:
    """Processor cores that this process may use: of a job or container, not of the machine."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def worker_count(options: DataOptions) -> int:
    """As many as asked for, else one for each core that this process need not share, at most 4."""
    if options.workers is not None:
        return options.workers
    return min(4, max(1, usable_cores() // options.sharing))


class FileLoader(Loader):
    """A data set read from files by worker processes; augmented and normalised on the device."""

    def __init__(
        self,
        tree: Tree,
        transform: Transform,
        *,
        schedule: Schedule,
        prepare: Preparation,
        options: DataOptions,
        bad: BadImages,
    ) -> None:
        super().__init__(schedule, prepare)
        self.options, self.bad, self.sampler = options, bad, EpochBatches(schedule)
        workers = worker_count(options)
        self.loader = QuietDataLoader(
            FileDataset(tree, transform, prepare.seed),
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.device(options.device).type == "cuda",
            generator=torch.Generator(),  # else each epoch draws from, and moves, the global one
            worker_init_fn=options.worker_init,
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        size, device = self.options.image_size, self.options.device
        none = torch.empty(0, dtype=torch.long)  # as a process' share of the last batch may be
        nothing = torch.empty(0, 3, size, size, dtype=torch.uint8), none, none
        self.sampler.epoch, self.sampler.first = epoch, first
        for batch, errors in self.loader:
            self.bad.add(errors)
            if batch is None and self.schedule.train:
                raise DataError(f"no image of a batch can be read: {errors[0]}")
            images, labels, index = batch or nothing
            images, labels, index = (
                x.to(device, non_blocking=True) for x in (images, labels, index)
            )
            yield self.prepare(to_channels(images, self.options.channels), epoch, index), labels


def worker_death(error: Exception) -> DataError | None:
    """What torch's message about a killed worker process, raised wherever the main process happens
    to be, means; None for any other error."""
    if "DataLoader worker" not in str(error):
        return None
    return DataError(
        "a process that reads images was killed, perhaps for want of memory: start again to go on, "
        "with fewer --workers if it happens again"
    )
