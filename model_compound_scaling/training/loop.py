"""The training loop of both training stages."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from data.batches import Loader
from data.errors import UserError
from data.loading import Data
from data.stateless_random import sample_seed
from model_compound_scaling.machine import processes, signals
from model_compound_scaling.runs.run import Run
from model_compound_scaling.runs.save_interval import Clock
from model_compound_scaling.training.evaluation import evaluate, progress
from model_compound_scaling.training.step import TrainStep

CHECK_EVERY = 100  # steps between two looks at whether all is finite: each waits for the device


@dataclass(frozen=True)
class Phase:
    """A part of a run: its name in figures and checkpoints, and its epochs, which are counted
    through all phases. All that is random in it depends on `seed`."""

    name: str
    epochs: range
    seed: int


@dataclass
class Progress:
    """How far an epoch is: batches done, sums over their images; a checkpoint can go on from it."""

    figures: dict  # what was known of the epoch before it began
    batch: int = 0  # steps done: each takes a batch of all processes together
    samples: int = 0  # images, loss and hits: of this process, until `state` sums them up
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
        loss, hits, samples = processes.all_reduce_sum(sums).tolist()
        return asdict(self) | {"loss": loss, "hits": int(hits), "samples": int(samples)}

    def means(self) -> dict[str, float]:
        """Mean loss, and accuracy in percent, over all processes."""
        sums = self.state()
        loss, top1 = sums["loss"] / sums["samples"], 100 * sums["hits"] / sums["samples"]
        return {"train_loss": loss, "train_top1": top1}


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
    """Train on the batches of an epoch that are not done yet, and count them in `done`. `after` is
    called after each and may raise. Every step's random numbers depend on (seed, epoch, step,
    process) only, so that a resumed epoch goes on as if it had not stopped."""
    step.network.train()
    world, rank, total = processes.world_size(), processes.rank(), len(loader)
    for images, labels in progress(loader.epoch(epoch, done.batch), label, total, done.batch):
        own_seed = sample_seed(seed, epoch, done.batch * world + rank)
        weight = world * len(labels) / loader.images_in(done.batch) if world > 1 else 1.0
        number = epoch * total + done.batch
        loss, hits = step(images, labels, seed=own_seed, number=number, weight=weight)
        done.add(loss, hits, len(labels))
        after(done)


def require_finite(step: TrainStep, run: Run, steps_per_epoch: int) -> None:
    """NonFiniteLoss if a loss or gradient was not finite; waits for the device."""
    # of all processes: with fp16 each knows its own loss only
    number = processes.all_reduce_max(int(step.first_bad))
    epoch, batch = divmod(number, steps_per_epoch)
    if number >= 0:
        raise NonFiniteLoss(
            f"the loss or a gradient became infinite or NaN in step {batch + 1} of epoch "
            f"{epoch + 1}; no weight was updated from it: lower --lr ({run.last_good()})"
        )


def run_epochs(
    run: Run,
    phase: Phase,
    step: TrainStep,
    data: Data,
    *,
    content: Callable[[], dict],
    prepare: Callable[[int], dict] = lambda epoch: {},
    figures: Callable[[], dict] = dict,
    evaluated: nn.Module | None = None,
) -> None:
    """Train, evaluate, record and save each epoch of a phase, continuing where the run stopped.
    `prepare(epoch)` sets what changes between epochs and `figures()` looks at the trained network;
    both return figures for the record. `content()` is what a checkpoint must hold; `evaluated` is
    the network whose accuracy counts, if not the trained one. Raises NonFiniteLoss, and Stopped
    after a signal; all that was done is on disk then."""
    total, clock, epochs = len(data.train), Clock(run.interval), phase.epochs
    network = evaluated or step.network

    def between(done: Progress, due: bool) -> None:
        # one question a step to all processes: is it time to save (1), did a signal come (its
        # number)? Signals are at least 2
        wish = processes.all_reduce_max(signals.received() or int(due))
        if wish:
            require_finite(step, run, total)
            run.save(content, progress=done.state())
        if wish > 1:
            run.require_saved()
            raise signals.Stopped(wish, run.last_good())

    def after_step(done: Progress) -> None:
        if done.batch % CHECK_EVERY == 0:
            require_finite(step, run, total)
        between(done, clock.due())

    for epoch in epochs[max(run.epochs_done - epochs.start, 0) :]:
        known, resumed = {"phase": phase.name, "epoch": epoch + 1}, run.take_progress()
        with signals.deferred():
            done = Progress(**resumed) if resumed else Progress(known | prepare(epoch))
            label = f"{phase.name} {epoch + 1}/{epochs.stop}"
            train_epoch(
                step, data.train, done, seed=phase.seed, epoch=epoch, label=label, after=after_step
            )
            require_finite(step, run, total)
            # BatchNorm's statistics are each process' own: the first one's are evaluated and saved
            processes.broadcast(list(network.buffers()))
            after_batch = partial(between, done, False)
            scores = evaluate(
                network,
                data.val.epoch(0),
                classes=data.classes,
                total=len(data.val),
                between=after_batch,
            )
            validated = {f"val_{name}": value for name, value in asdict(scores).items()}
            run.finish_epoch(done.figures | done.means() | validated | figures(), content)


class NonFiniteLoss(UserError):
    """Training diverged."""

    exit_code = 6
    shared = True
