"""Networks of one's own: what `--model own_networks:NAME` builds."""

from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm


def plain(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )  # fmt: skip


class Held(nn.Module):
    """A network below attributes of these names."""

    def __init__(self, network: nn.Module, *names: str) -> None:
        super().__init__()
        self.name, *rest = names
        setattr(self, self.name, Held(network, *rest) if rest else network)

    def forward(self, x):
        return getattr(self, self.name)(x)


def module(num_classes: int) -> nn.Module:
    return Held(plain(num_classes), "module")


def nested(num_classes: int) -> nn.Module:
    return Held(plain(num_classes), "module", "module")


def model(num_classes: int) -> nn.Module:
    return Held(plain(num_classes), "model")


class Lite(nn.Module):
    """The layers' names of lukemelas' EfficientNet-B0, but another network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self._blocks = nn.ModuleList(nn.Module() for _ in range(16))
        for block in self._blocks:
            block._depthwise_conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            block._project_conv = nn.Conv2d(8, 8, 1, bias=False)
        self._fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self._bn0(self._conv_stem(x))
        for block in self._blocks:
            x = x + block._project_conv(block._depthwise_conv(x).relu())
        return self._fc(x.mean((2, 3)))


def lite(num_classes: int) -> nn.Module:
    return Lite(num_classes)


def lite0(num_classes: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


class HeadFirst(nn.Module):
    """Its last tensors are not the classifier's."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.conv = nn.Linear(8, num_classes), nn.Conv2d(3, 8, 3)
        self.unused = nn.Linear(8, 17)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def head_first(num_classes: int) -> nn.Module:
    return HeadFirst(num_classes)


def conv_head(num_classes: int) -> nn.Module:
    head = nn.Conv2d(8, 2 * num_classes, 1), nn.Conv2d(2 * num_classes, num_classes, 1)
    mean = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head, *mean, nn.BatchNorm1d(num_classes))


def only_seven(num_classes: int) -> nn.Module:
    if num_classes != 7:
        raise ValueError("seven classes, no others")
    return plain(num_classes)


def pruned(num_classes: int) -> nn.Module:
    network = plain(num_classes)
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    prune.ln_structured(network[3], "weight", amount=0.7, n=2, dim=0)
    return network


def tied(num_classes: int) -> nn.Module:
    """Three layers of one weight."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 3) for _ in range(3)))
    network[2].weight = network[3].weight = network[1].weight
    return nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def tied_pruned(num_classes: int) -> nn.Module:
    network = tied(num_classes)
    prune.l1_unstructured(network[2], "weight", amount=0.5)
    return network


def tied_masked(num_classes: int) -> nn.Module:
    """Masks that let everything through: those of a file will not."""
    network = tied(num_classes)
    for layer in network[1:4]:
        prune.identity(layer, "weight")
    return network


def one_layer_twice(num_classes: int) -> nn.Module:
    network = tied(num_classes)
    network[3] = network[2]
    return network


def orthogonal(num_classes: int) -> nn.Module:
    network = plain(num_classes)
    parametrizations.orthogonal(network[7], orthogonal_map="matrix_exp")
    return network


def normed(num_classes: int) -> nn.Module:
    network = plain(num_classes)
    weight_norm(network[0])
    parametrizations.weight_norm(network[3])
    spectral_norm(network[7])
    return network


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(3)) / 2


def symmetric(num_classes: int) -> nn.Module:
    network = plain(num_classes)
    parametrize.register_parametrization(network[3], "weight", Symmetric())
    return network


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(num_classes))


def frozen(num_classes: int) -> nn.Module:
    return plain(num_classes).requires_grad_(False)


def frozen_features(num_classes: int) -> nn.Module:
    network = plain(num_classes)
    network[:7].requires_grad_(False)
    return network
