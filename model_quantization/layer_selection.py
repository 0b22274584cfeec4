"""Which layers are ternarized or pruned: one table, used once."""

import re
from collections.abc import Iterator

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from data.errors import UserError

MOST_VALUES = 15  # of a layer with more levels
# parameter names by network family
TERNARIZED = {
    "micronet": r"\.conv\d+\.weight$",  # convolutions inside the blocks
    "resnet": r"\.conv\d+\.weight$",
    "efficientnet": r"^features\.("
    r"1\.\d+\.block\.2\.0|"  # project, in the stage that does not expand
    r"[2-7]\.\d+\.block\.[03]\.0|"  # expand and project
    r"8\.0)\.weight$",  # head
    "lenet": r"^(conv1|conv2|fc1|fc2)\.weight$",
}


def _named(network: nn.Module, *kinds: type) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in network.named_modules() if isinstance(m, kinds))


def _squeeze_excitation(network: nn.Module) -> list[str]:
    blocks = _named(network, SqueezeExcitation)
    return [f"{name}.{part}.weight" for name, _ in blocks for part in ("fc1", "fc2")]


def _fully_connected(network: nn.Module) -> list[str]:
    return [f"{name}.weight" for name, _ in _named(network, nn.Linear)]


def _depthwise(network: nn.Module) -> list[str]:
    convs = _named(network, nn.Conv2d)
    return [f"{name}.weight" for name, conv in convs if conv.groups == conv.in_channels > 1]


PRUNED = {"se": _squeeze_excitation, "fc": _fully_connected, "dw": _depthwise}


def is_quantized(weight: Tensor) -> bool:
    """At most one positive and one negative value, and a zero: what EC2T leaves behind; or up to 15
    values with a zero among at least four times as many weights: with more levels."""
    values = weight.unique()
    sides = (values > 0).sum(), (values < 0).sum()
    few = max(sides) <= 1 or len(values) <= min(MOST_VALUES, weight.numel() // 4)
    return few and bool((values == 0).any())


def ternarized_names(network: nn.Module, *, family: str, pattern: str | None = None) -> list[str]:
    """Parameters to ternarize: those matching `pattern`, else the family's, else every
    convolution but the first."""
    pattern = pattern or TERNARIZED.get(family)
    if pattern is None:
        names = [f"{name}.weight" for name, _ in _named(network, nn.Conv2d)][1:]
        if not names:
            raise UserError("the network has no second convolution: say what with --ternarize")
        return names
    layers = {f"{name}.weight" for name, _ in _named(network, nn.Conv2d, nn.Linear)}
    names = [n for n, _ in network.named_parameters() if n in layers and re.search(pattern, n)]
    if not names:
        raise UserError(
            f"--ternarize {pattern!r} matches no convolution or linear layer; "
            f"there are {', '.join(sorted(layers)[:4])} ..."
        )
    return names


def pruned_names(network: nn.Module, *, families: list[str]) -> list[str]:
    """Parameters of the pruning families ("se", "fc", "dw"), without those already quantized."""
    parameters = dict(network.named_parameters())
    names = [name for family in families for name in PRUNED[family](network)]
    names = [name for name in names if not is_quantized(parameters[name])]
    if not names:
        raise UserError(
            f"nothing to prune: the network has no layers of {' or '.join(families)} left "
            "(--ec-pruning-se, --ec-pruning-fc and --ec-pruning-dw choose others)"
        )
    return names


def freeze_quantized(network: nn.Module) -> list[str]:
    """Exclude already quantized layers from training; returns their names."""
    layers = _named(network, nn.Conv2d, nn.Linear)
    names = [f"{name}.weight" for name, layer in layers if is_quantized(layer.weight)]
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    return names
