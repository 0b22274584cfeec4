"""How far an epoch is: what a checkpoint within it needs to go on at the next step."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model_compound_scaling.machine import processes


@dataclass
class Progress:
    """Batches done, and sums over the images in them."""

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
        return {
            "train_loss": sums["loss"] / sums["samples"],
            "train_top1": 100 * sums["hits"] / sums["samples"],
        }
