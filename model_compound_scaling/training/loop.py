"""The training loop of both training stages."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from data import Data
from data.errors import NonFiniteLoss
from data.loaders import Loader
from data.randomness import sample_seed
from model_compound_scaling import distributed, interruption
from model_compound_scaling.evaluation import evaluate, progress
from model_compound_scaling.runs import Run
from model_compound_scaling.steps import TrainStep

CHECK_EVERY = 100  # steps between two looks at whether all is finite: each waits for the device


@dataclass
class Progress:
    """How far an epoch is: batches done, sums over their images, figures known before them."""

    figures: dict
    batch: int = 0
    samples: int = 0
    loss: Tensor | float = 0.0
    hits: Tensor | int = 0

    def add(self, loss: Tensor, hits: Tensor, samples: int) -> None:
        """Count one more batch; the sums stay on the device, so that no step waits for it."""
        self.loss = self.loss + loss.double() * samples
        self.hits = self.hits + hits
        self.samples += samples
        self.batch += 1

    def state(self) -> dict:
        """Plain values for a checkpoint, the sums those of all processes."""
        sums = torch.tensor([float(self.loss), float(self.hits), self.samples], dtype=torch.float64)
        loss, hits, samples = distributed.all_reduce_sum(sums).tolist()
        return asdict(self) | {"loss": loss, "hits": int(hits), "samples": int(samples)}

    def means(self) -> dict[str, float]:
        """Mean loss, and accuracy in percent, over all processes."""
        sums = self.state()
        return {
            "train_loss": sums["loss"] / sums["samples"],
            "train_top1": 100 * sums["hits"] / sums["samples"],
        }


@dataclass(frozen=True)
class Interval:
    """How often a checkpoint is due within an epoch: after so many steps, or seconds, or never."""

    steps: int = 0
    seconds: float = math.inf

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """`500steps` or `15min`. ValueError for anything else."""
        match = re.fullmatch(r"(\d+)(steps|min)", text)
        if not match or not int(match[1]):
            raise ValueError(f"{text!r} is no interval")
        number = int(match[1])
        return cls(steps=number) if match[2] == "steps" else cls(seconds=60.0 * number)


class Clock:
    """Says when a checkpoint is due, by steps or by a clock that cannot be set back."""

    def __init__(self, interval: Interval) -> None:
        self.interval, self.steps, self.start = interval, 0, time.monotonic()

    def due(self) -> bool:
        """To be asked once a step."""
        self.steps += 1
        waited = time.monotonic() - self.start
        if self.steps == self.interval.steps or waited >= self.interval.seconds:
            self.steps, self.start = 0, time.monotonic()
            return True
        return False


def train_epoch(
    step: TrainStep,
    loader: Loader,
    done: Progress,
    *,
    seed: int,
    epoch: int,
    label: str,
    after: Callable[[Progress], None] = lambda done: None,
) -> None:
    """Train on the batches of an epoch that are not done yet, and count them in `done`.

    `after` is called after each and may raise. Every step's random numbers depend on (seed, epoch,
    step, process) only, so that a resumed epoch goes on as if it had not stopped.
    """
    step.network.train()
    world, rank, total = distributed.world_size(), distributed.rank(), len(loader)
    for images, labels in progress(loader.epoch(epoch, done.batch), label, total, done.batch):
        loss, hits = step(
            images,
            labels,
            seed=sample_seed(seed, epoch, done.batch * world + rank),
            number=epoch * total + done.batch,
            weight=world * len(labels) / loader.images_in(done.batch) if world > 1 else 1.0,
        )
        done.add(loss, hits, len(labels))
        after(done)


def require_finite(step: TrainStep, run: Run, steps_per_epoch: int) -> None:
    """NonFiniteLoss if a loss or gradient was not finite; waits for the device."""
    # of all processes: with fp16 each knows its own loss only
    number = distributed.all_reduce_max(int(step.first_bad))
    if number < 0:
        return
    epoch, batch = divmod(number, steps_per_epoch)
    raise NonFiniteLoss(
        f"the loss or a gradient became infinite or NaN in step {batch + 1} of epoch {epoch + 1}; "
        f"no weight was updated from it: lower --lr ({run.last_good()})"
    )


def run_epochs(
    *,
    run: Run,
    phase: str,
    epochs: range,
    seed: int,
    step: TrainStep,
    data: Data,
    content: Callable[[], dict],
    prepare: Callable[[int], dict] = lambda epoch: {},
    figures: Callable[[], dict] = dict,
    evaluated: nn.Module | None = None,
    interval: Interval = Interval(),
) -> None:
    """Train, evaluate, record and save each of `epochs`, continuing where the run stopped.

    `prepare(epoch)` sets what changes between epochs and `figures()` looks at the trained network;
    both return figures for the record. `content()` is what a checkpoint must hold; `evaluated` is
    the network whose accuracy counts, if not the trained one. Raises NonFiniteLoss, and Stopped
    after a signal; all that was done is on disk then.
    """
    total, clock = len(data.train), Clock(interval)
    network = evaluated or step.network

    def between(done: Progress, due: bool) -> None:
        # one question a step to all processes: is it time to save (1), did a signal come (its
        # number)? Signals are at least 2
        wish = distributed.all_reduce_max(interruption.received() or int(due))
        if wish:
            require_finite(step, run, total)
            run.save(content, progress=done.state())
        if wish > 1:
            run.require_saved()
            raise interruption.Stopped(wish, run.last_good())

    def after_step(done: Progress) -> None:
        if done.batch % CHECK_EVERY == 0:
            require_finite(step, run, total)
        between(done, clock.due())

    for epoch in epochs[max(run.epochs_done - epochs.start, 0) :]:
        known, resumed = {"phase": phase, "epoch": epoch + 1}, run.take_progress()
        with interruption.deferred():
            done = Progress(**resumed) if resumed else Progress(known | prepare(epoch))
            train_epoch(
                step,
                data.train,
                done,
                seed=seed,
                epoch=epoch,
                label=f"{phase} {epoch + 1}/{epochs.stop}",
                after=after_step,
            )
            require_finite(step, run, total)
            distributed.broadcast(list(network.buffers()))
            scores = evaluate(
                network,
                data.val.epoch(0),
                total=len(data.val),
                between=lambda done=done: between(done, False),
            )
            record = done.figures | done.means()
            record |= {f"val_{name}": value for name, value in asdict(scores).items()}
            run.finish_epoch(record | figures(), content)
