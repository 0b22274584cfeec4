"""Random networks of everything that there is a kernel for, and ways to compile them."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from helpers import few_values, randomize
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from model_compound_scaling.networks.quantizers import ActivationQuantizer
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


INEXACT = (*(a for a in ACTIVATIONS if isinstance(a, type) and a not in (nn.ReLU, nn.ReLU6,
           nn.Identity)), SqueezeExcitation, nn.LeakyReLU, nn.Hardtanh)  # fmt: skip


def _exact(module: nn.Module) -> nn.Module:
    """What stands for a module whose results can need more than 24 bits."""
    if isinstance(module, nn.AvgPool2d):
        return nn.MaxPool2d(3, 2, 1, ceil_mode=module.ceil_mode)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveMaxPool2d(module.output_size)
    return nn.ReLU() if isinstance(module, INEXACT) else module


def _power(number: float) -> float:
    return 2.0 ** round(math.log2(max(number, 2.0**-20)))


def make_exact(network: nn.Module, shape: tuple[int, int, int], pick, bits: int | None = None
               ) -> nn.Module:  # fmt: skip
    """Weights, biases and steps are short binary fractions, with a quantizer before each layer:
    float32 computes such a network without rounding, so that every order of sums is the same, and
    what lies between two codes is a tie that both sides have to break alike."""
    for module in list(network.modules()):
        for child, old in list(module.named_children()):
            setattr(module, child, _exact(old))
    generator = torch.Generator().manual_seed(0)

    def fractions(x: Tensor, size: float) -> Tensor:
        return torch.randint(-6, 7, x.shape, generator=generator) * _power(size) / 4

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, _ = 0.0, module.running_var.fill_(1)
            module.weight.data = 2.0 ** torch.randint(-1, 2, module.weight.shape)
            module.running_mean = fractions(module.running_mean, 0.25)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight, size = module.weight, module.weight[0].numel() ** -0.5
            values = torch.tensor(pick(((-1, 0, 0.5), (0.5, 0, 1), (-1, -0.5, 0, 0.25), (0,))))
            listed = values[torch.randint(len(values), weight.shape, generator=generator)]
            weight.data = pick((listed * _power(size), fractions(weight, size)))
        if getattr(module, "bias", None) is not None:
            module.bias.data = fractions(module.bias, 0.5)
    quantized = quantize_inputs(network, shape, lambda: bits or pick((8, 8, 7, 4, 2)))
    for module in quantized.modules():
        if isinstance(module, ActivationQuantizer):
            module.step.data = torch.tensor(_power(module.step.item() / 2))
            if module.signed and pick((True, False)):
                module.low += 1  # as narrow ranges have it
    return quantized


def quantize_inputs(network: nn.Module, shape: tuple[int, int, int], bits) -> nn.Module:
    """A quantizer before each layer, the first one included, signed where its inputs are; their
    steps are those of a first batch, one layer after the other."""
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for name in layers:
        layer, seen = network.get_submodule(name), []
        with layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])):
            network(image)
        quantizer = ActivationQuantizer(bits(), signed=bool((seen[0] < 0).any()))
        quantizer.start(seen[0])
        network.set_submodule(name, nn.Sequential(quantizer, layer))
    return network.eval()


def exact_network(seed: int, shape: tuple[int, int, int], pieces: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)

    def pick(choices: tuple) -> object:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    return make_exact(RandomNetwork(seed, shape, pieces), shape, pick)
