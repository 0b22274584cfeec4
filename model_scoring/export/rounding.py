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
    becomes the neighbour, and what follows is different by a whole step, in any runtime. 0 for a
    network that draws random numbers: the same parameters give other logits there."""
    generator = torch.Generator().manual_seed(0)

    def logits(noise: float) -> Tensor:
        noisy = copied(network)
        for parameter in filter(Tensor.is_floating_point, noisy.parameters()):
            numbers = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + noise * numbers.to(parameter.dtype))
        return logits_of(noisy(images), len(images), classes)

    expected = logits(0)
    if not all(torch.equal(logits(0), expected) for _ in range(TRIES)):
        return 0.0
    largest = expected.abs().amax(1).clamp(min=1e-30)
    changes = torch.stack([(logits(NOISE) - expected).abs().amax(1) for _ in range(TRIES)])
    return float((changes / largest).max())
