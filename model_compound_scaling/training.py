"""The training loop of both training stages, and evaluation."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data import Data
from data.errors import NonFiniteLoss, UserError
from model_compound_scaling.runs import Run

Batches = Iterable[tuple[Tensor, Tensor]]  # (N, C, H, W) images, (N,) labels


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracies in percent."""

    loss: float
    top1: float
    top5: float


@dataclass(frozen=True)
class Recipe:
    """Defaults of full-precision training."""

    epochs: int
    lr: float
    weight_decay: float
    schedule: str


RECIPES = {"efficientnet": Recipe(90, 0.1, 1e-4, "step")}
DEFAULT_RECIPE = Recipe(200, 0.1, 5e-4, "cosine")
SCHEDULES: dict[str, Callable[[int, int], float]] = {  # (epoch, epochs) -> factor of the lr
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
    "step": lambda epoch, epochs: 0.1 ** (epoch // 30),
}


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels are among the k largest logits, as a tensor: no wait for the device."""
    best = logits.topk(min(k, logits.shape[1])).indices
    return (best == labels[:, None]).sum()


def require_fit(network: nn.Module, data: Data) -> None:
    """UserError unless the network, on the CPU, maps the data's images to one logit a class."""
    image = torch.zeros(1, data.channels, data.image_size, data.image_size)
    shown = f"images of {data.channels}x{data.image_size}x{data.image_size}"
    was_training = network.training
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(image).shape)
    except Exception as error:  # a network from elsewhere may fail in any way
        reason = str(error).partition("\n")[0]
        raise UserError(f"the network cannot take {shown} ({reason}): see --image-size") from None
    network.train(was_training)
    if shape != (1, data.classes):
        raise UserError(f"the network maps {shown} to {shape}, not to {data.classes} classes")


@torch.no_grad()
def evaluate(network: nn.Module, batches: Batches, *, total: int | None = None) -> Evaluation:
    """Loss and accuracy over all batches, in evaluation mode; `total` is their number."""
    network.eval()
    sums, samples = torch.zeros(3, dtype=torch.float64), 0
    for images, labels in tqdm(batches, "evaluating", total, leave=False, disable=None):
        logits = network(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        batch = torch.stack([loss.double(), _hits(logits, labels, 1), _hits(logits, labels, 5)])
        sums = sums.to(batch.device) + batch
        samples += len(labels)
    loss, top1, top5 = (sums / samples).tolist()
    return Evaluation(loss, 100 * top1, 100 * top5)


def train_epoch(
    network: nn.Module, batches: Batches, *, step: Callable[[Tensor], None], total: int, label: str
) -> dict[str, float]:
    """One pass over the data; `step` takes each batch's loss and updates the network."""
    network.train()
    loss_sum, hits, samples = 0.0, 0, 0
    for images, labels in tqdm(batches, label, total, leave=False, disable=None):
        output = network(images)
        logits = output if isinstance(output, Tensor) else output[0]  # no auxiliary classifiers
        loss = F.cross_entropy(logits, labels)
        step(loss)
        # sums stay on the device, so that no step waits for it
        loss_sum = loss_sum + loss.detach().double() * len(labels)
        hits = hits + _hits(logits.detach(), labels, 1)
        samples += len(labels)
    return {"train_loss": float(loss_sum) / samples, "train_top1": 100 * int(hits) / samples}


def run_epochs(
    *,
    run: Run,
    phase: str,
    epochs: range,
    seed: int,
    network: nn.Module,
    data: Data,
    step: Callable[[Tensor], None],
    content: Callable[[], dict],
    prepare: Callable[[int], dict] = lambda epoch: {},
    figures: Callable[[], dict] = dict,
) -> None:
    """Train, evaluate, record and save each of `epochs`, continuing where the run stopped.

    `prepare(epoch)` sets what changes between epochs and `figures()` looks at the trained network;
    both return figures for the record. `content()` is what a checkpoint must hold. Raises
    NonFiniteLoss; the last good epoch is on disk then.
    """
    for epoch in epochs[max(run.epochs_done - epochs.start, 0) :]:
        record = {"phase": phase, "epoch": epoch + 1, **prepare(epoch)}
        # dropout must not depend on how often the run was interrupted
        torch.manual_seed((seed << 20) + epoch)
        batches = data.train.epoch(epoch)
        label = f"{phase} {epoch + 1}/{epochs.stop}"
        record |= train_epoch(network, batches, step=step, total=len(data.train), label=label)
        if not math.isfinite(record["train_loss"]):
            raise NonFiniteLoss(
                f"the loss became {record['train_loss']} in epoch {epoch + 1}: lower --lr; "
                f"the state before this epoch is in {run.folder}"
            )
        scores = evaluate(network, data.val.epoch(0), total=len(data.val))
        record |= {f"val_{name}": value for name, value in asdict(scores).items()}
        run.finish_epoch(record | figures(), content())
