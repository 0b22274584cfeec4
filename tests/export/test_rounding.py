"""What other roundings may change a network's logits by."""

import numpy as np
import pytest
import torch
from torch import nn

from model_compound_scaling.networks.quantizers.activation_quantizer import ActivationQuantizer
from model_scoring.export.rounding import NOISE, noise_of_rounding

DRAWING = {
    "dropout": lambda x: nn.functional.dropout(x, training=True),
    "numpy": lambda x: x + float(np.random.random()),
    "permutation": lambda x: x + torch.multinomial(x.softmax(1), 8),
}


class Drawing(nn.Linear):
    """Adds random numbers, drawn in evaluation too."""

    def __init__(self, way: str) -> None:
        super().__init__(8, 4)
        self.way = way

    def forward(self, x):
        return super().forward(DRAWING[self.way](x))


@pytest.mark.parametrize("way", DRAWING)
def test_random_numbers_are_no_rounding(way):
    assert noise_of_rounding(Drawing(way), torch.randn(3, 8), 4) == 0


def test_noise_is_that_of_the_parameters_and_a_step_at_a_tie():
    torch.manual_seed(0)
    network, images = nn.Linear(8, 4), torch.randn(3, 8)
    assert NOISE / 10 < noise_of_rounding(network, images, 4) < 10 * NOISE
    quantizer = ActivationQuantizer(4, signed=True)
    network = nn.Sequential(quantizer, nn.Linear(8, 4))
    quantizer.step.data.fill_(0.25)
    at_ties = (torch.randint(-3, 3, (3, 8)) + 0.5) * 0.25
    assert noise_of_rounding(network, at_ties, 4) > 1000 * NOISE
