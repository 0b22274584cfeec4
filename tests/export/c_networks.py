"""Random networks of everything that there is a kernel for, and ways to compile them."""

from functools import partial

import torch
import torch.nn.functional as F
from helpers import few_values, randomize
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from model_scoring.export.c_source import CSource, Description, c_source

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU, nn.GELU,
    partial(nn.LeakyReLU, 0.2), partial(nn.Hardtanh, -0.7, 0.4), nn.Identity,
)  # fmt: skip


class Residual(nn.Module):
    """Before the sum an activation, or BatchNorm, or neither."""

    def __init__(self, channels: int, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(self.first(x))) + x)


class Branches(nn.Module):
    """Parts of the channels go their own ways, are joined, and shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.one = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.other = nn.Sequential(nn.Conv2d(channels - half, 6, 1), nn.Sigmoid())
        self.half = half

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, : self.half], x[:, self.half :]
        joined = torch.cat([self.one(a) * 1.5 - 0.25, b, self.other(b), 2 - a], 1)
        if joined.shape[1] % 2:
            return joined
        n, c, h, w = joined.shape
        return joined.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Borders(nn.Module):
    """Padding as TensorFlow has it, cuts, and channels of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return F.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 1, 2))


def piece(channels: int, pick) -> nn.Module:
    """One of everything, by a function that picks one of several."""
    out = pick((4, 7, 12))
    kinds = {
        "conv": lambda: nn.Conv2d(channels, out, pick((1, 2, 3, 5)), pick((1, 2, 3)), 1),
        "uneven": lambda: nn.Conv2d(channels, out, (1, 5), (2, 1), (0, 2)),
        "dilated": lambda: nn.Conv2d(channels, out, 3, pick((1, 2)), 2, dilation=2),
        "same": lambda: nn.Conv2d(channels, out, 3, padding=1, bias=False),
        "depthwise": lambda: nn.Conv2d(channels, channels, 3, pick((1, 2)), 1, groups=channels),
        "grouped": lambda: (
            nn.Conv2d(channels, 2 * channels, 3, 1, 1, groups=channels // 2 or 1)
            if channels % 2 == 0
            else nn.Identity()
        ),
        "norm": lambda: nn.BatchNorm2d(channels),
        "activation": lambda: pick(ACTIVATIONS)(),
        "residual": lambda: Residual(channels, pick(ACTIVATIONS)()),
        "before": lambda: Residual(channels, nn.BatchNorm2d(channels)),
        "branches": lambda: Branches(channels),
        "borders": lambda: Borders(),
        "squeeze": lambda: SqueezeExcitation(channels, 3),
        "max": lambda: nn.MaxPool2d(pick((2, 3)), pick((1, 2)), 1, ceil_mode=pick((True, False))),
        "average": lambda: nn.AvgPool2d(
            3, 2, 1, ceil_mode=pick((True, False)), count_include_pad=pick((True, False))
        ),
        "adaptive": lambda: nn.AdaptiveAvgPool2d((5, 3)),
        "largest": lambda: nn.AdaptiveMaxPool2d((4, 6)),
    }
    return kinds[pick(tuple(kinds))]()


class RandomNetwork(nn.Sequential):
    """Pieces one after the other, then one of three heads."""

    def __init__(self, seed: int, shape: tuple[int, int, int], pieces: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def pick(choices: tuple) -> object:
            return choices[int(torch.randint(len(choices), (), generator=generator))]

        torch.manual_seed(seed)
        image = torch.zeros(1, *shape)
        while len(self) < pieces:
            new = piece(image.shape[1], pick).eval()
            try:
                image = new(image)
            except RuntimeError:  # no pixels are left for its window
                continue
            self.append(new)
        pool = pick((nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2), nn.Identity()))
        self.extend([pool, nn.Flatten()])
        inputs = self(torch.zeros(1, *shape)).shape[1]
        self.extend([nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, 5)])
        randomize(self, seed)
        for module in self.modules():  # half of all layers have few values
            if isinstance(module, nn.Conv2d | nn.Linear) and pick((True, False)):
                values = pick(((-0.3, 0.0, 0.2), (0.1, 0.0, 0.4), (-0.2, -0.1, 0.0, 0.3), (0.0,)))
                few_values(module, values, part="")


def source_of(network: nn.Module, shape: tuple[int, int, int], **known: tuple) -> CSource:
    return c_source(network, shape, name="net", description=Description(("a test",), **known))
