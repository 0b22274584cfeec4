"""How far another runtime's logits may be from PyTorch's: as far as other roundings take them."""

import torch
from torch import Tensor, nn

from model_compound_scaling.networks.logits import logits_of
from model_compound_scaling.networks.permanent_weights import copied

NOISE = 1e-5  # of the parameters, relative; float32 rounds by 6e-8
TRIES = 4


@torch.no_grad()
def noise_of_rounding(network: nn.Module, images: Tensor, classes: int | None) -> float:
    """The largest change of an image's logits, relative to the largest of them, when all parameters
    change a little; images (N, C, H, W). Where a quantizer's input lies next to a tie, its code
    becomes the neighbour, and what follows is different by a whole step, in any runtime."""
    count, generator = len(images), torch.Generator().manual_seed(0)
    expected = logits_of(network(images), count, classes)
    largest, worst = expected.abs().amax(1).clamp(min=1e-30), 0.0
    for _ in range(TRIES):
        noisy = copied(network)
        for parameter in filter(Tensor.is_floating_point, noisy.parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + NOISE * noise.to(parameter.dtype))
        changes = (logits_of(noisy(images), count, classes) - expected).abs().amax(1)
        worst = max(worst, float((changes / largest).max()))
    return worst
