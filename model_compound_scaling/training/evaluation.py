"""How good a network is on validation images, and whether it fits them at all."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.errors import UserError
from data.loading import Data
from model_compound_scaling.machine import processes
from model_compound_scaling.networks.logits import FastLogits, logits_of
from model_compound_scaling.networks.permanent_weights import copied
from model_compound_scaling.runs.run import Run

Batches = Iterable[tuple[Tensor, Tensor]]  # (N, C, H, W) images, (N,) labels


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracies in percent."""

    loss: float
    top1: float
    top5: float


def progress(batches: Batches, label: str, total: int, first: int = 0) -> tqdm:
    """A bar on the terminal that vanishes at the end; none in other processes and where piped."""
    hidden = None if processes.is_main() else True
    return tqdm(batches, label, total, initial=first, leave=False, disable=hidden)


@torch.no_grad()
def require_fit(network: nn.Module, data: Data) -> None:
    """UserError unless the network, on the CPU, maps the data's images to one logit a class, when
    evaluated and when trained: auxiliary heads may need larger ones."""
    shown = f"images of {data.channels}x{data.image_size}x{data.image_size}"
    tried = copied(network)  # training changes statistics, and whatever a network counts
    for training, count in ((False, 1), (True, 2)):  # BatchNorm may need two to be trained
        images = torch.zeros(count, data.channels, data.image_size, data.image_size)
        try:
            with torch.random.fork_rng(devices=[]):
                output = tried.train(training)(images)
        except Exception as error:  # a network from elsewhere may fail in any way
            if training and not isinstance(error, RuntimeError):
                return  # such as SyncBatchNorm's on a CPU: this says nothing of the images
            reason = str(error).partition("\n")[0]
            how = f"{shown} in training" if training else shown
            raise UserError(f"the network cannot take {how} ({reason}): see --image-size") from None
        logits_of(output, count, data.classes)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Batches,
    *,
    classes: int | None = None,
    total: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Loss and accuracy over all batches of all processes, in evaluation mode. `total` is the
    number of batches; `between` is called after each and may raise."""
    network.eval()
    sums, samples = torch.zeros(3, dtype=torch.float64), 0  # loss, top-1, top-5
    forward = FastLogits(network, classes)
    for images, labels in progress(batches, "evaluating", total):
        if len(labels):  # the last batch may leave nothing for some process
            logits = forward(images).float()
            loss = F.cross_entropy(logits, labels, reduction="sum").double()
            batch = torch.stack([loss, hits(logits, labels, 1), hits(logits, labels, 5)])
            sums = sums.to(batch.device) + batch
            samples += len(labels)
        between()
    sums = processes.all_reduce_sum(torch.cat([sums.cpu(), torch.tensor([samples])]))
    loss, top1, top5 = (sums[:3] / sums[3]).tolist()
    return Evaluation(loss, 100 * top1, 100 * top5)


def report(run: Run, network: nn.Module, data: Data) -> None:
    """Where training images decided (--holdout): measure the run's best network on the validation
    images, once, into validation.json."""
    if data.reported is None or not run.epochs or run.reported:
        return
    network.load_state_dict(run.best_network["state_dict"])
    batches = data.reported.epoch(0)
    scores = evaluate(network, batches, classes=data.classes, total=len(data.reported))
    run.report({"epoch": run.best["epoch"], **asdict(scores)})


def hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels are among the k largest logits, as a tensor: no wait for the device."""
    return (logits.topk(min(k, logits.shape[1])).indices == labels[:, None]).sum()
