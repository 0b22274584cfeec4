"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): a network learns from the
probabilities that another one, its teacher, gives to the same images, beside the labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Teacher(nn.Module):
    """A network as another one's teacher: never trained, in evaluation mode. `scale` and `shift`
    (1, C, 1, 1) bring images from the student's normalisation to its own; its class `order[i]` is
    the student's class i."""

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor, order: Tensor) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        for name, tensor in (("scale", scale), ("shift", shift), ("order", order)):
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) of the student's."""
        return self.network(images * self.scale + self.shift)[:, self.order]


@dataclass(frozen=True)
class Distillation:
    """loss = (1 - share) cross-entropy + share T^2 KL, T the temperature that both networks' logits
    are divided by. KL from the teacher's probabilities to the student's, which have to cover them
    (forward); or `reverse`, from the student's, which may leave some out."""

    teacher: nn.Module  # images -> logits
    share: float
    temperature: float = 1.0
    reverse: bool = False

    def loss(self, cross_entropy: Tensor, logits: Tensor, wanted: Tensor) -> Tensor:
        """Scalar, from the student's and the teacher's logits (N, classes)."""
        student, teacher = (
            F.log_softmax(x / self.temperature, 1) for x in (logits, wanted.to(logits.dtype))
        )
        pair = (teacher, student) if self.reverse else (student, teacher)
        divergence = F.kl_div(*pair, reduction="batchmean", log_target=True)
        return torch.lerp(cross_entropy, self.temperature**2 * divergence, self.share)
