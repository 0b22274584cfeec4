"""Which layers are ternarized or pruned: one table, used once."""

import re
from collections.abc import Iterator

from torch import nn

from data.errors import UserError, some
from model_compound_scaling.networks.few_values import few_values
from model_quantization.ec2t.ternarizer import all_but_the_first

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
    modules = network.named_modules(remove_duplicate=False)
    return ((name, m) for name, m in modules if isinstance(m, kinds))


def _squeeze_excitation(network: nn.Module) -> list[str]:
    from torchvision.ops import SqueezeExcitation  # takes a second to import

    blocks = _named(network, SqueezeExcitation)
    return [f"{name}.{part}.weight" for name, _ in blocks for part in ("fc1", "fc2")]


def _depthwise(network: nn.Module) -> list[str]:
    convs = _named(network, nn.Conv2d)
    return [f"{name}.weight" for name, conv in convs if conv.groups == conv.in_channels > 1]


PRUNED = {
    "se": _squeeze_excitation,
    "fc": lambda network: [f"{name}.weight" for name, _ in _named(network, nn.Linear)],
    "dw": _depthwise,
}


def _once(network: nn.Module, names: list[str]) -> list[str]:
    """Each parameter once, by its first name: tied layers share it and are one layer here."""
    first = {parameter: name for name, parameter in network.named_parameters()}
    every = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if others := [name for name in names if name not in every]:
        raise UserError(
            f"{some(others)} is computed by the network's own code and no parameter: choose other "
            "layers with --ternarize or --ec-pruning-se, --ec-pruning-fc, --ec-pruning-dw"
        )
    return list(dict.fromkeys(first[network.get_parameter(name)] for name in names))


def ternarized_names(network: nn.Module, *, family: str, pattern: str | None = None) -> list[str]:
    """Parameters to ternarize: those matching `pattern`, else the family's, else every
    convolution but the first."""
    pattern = pattern or TERNARIZED.get(family)
    if pattern is None:
        names = _once(network, all_but_the_first(network))
        if not names:
            raise UserError("the network has no second convolution: say what with --ternarize")
        return names
    layers = {f"{name}.weight" for name, _ in _named(network, nn.Conv2d, nn.Linear)}
    every = (name for name, _ in network.named_parameters(remove_duplicate=False))
    names = _once(network, [n for n in every if n in layers and re.search(pattern, n)])
    if not names:
        raise UserError(
            f"--ternarize {pattern!r} matches no convolution or linear layer; "
            f"there are {', '.join(sorted(layers)[:4])} ..."
        )
    return names


def pruned_names(network: nn.Module, *, families: list[str]) -> list[str]:
    """Parameters of the pruning families ("se", "fc", "dw"), without those already quantized,
    which are known by their few values."""
    names = _once(network, [name for family in families for name in PRUNED[family](network)])
    names = [name for name in names if few_values(network.get_parameter(name)) is None]
    if not names:
        raise UserError(
            f"nothing to prune: the network has no layers of {' or '.join(families)} left "
            "(--ec-pruning-se, --ec-pruning-fc and --ec-pruning-dw choose others)"
        )
    return names


def freeze_quantized(network: nn.Module) -> list[str]:
    """Exclude already quantized layers from training; returns their names."""
    kept = (
        (name, m._parameters.get("weight")) for name, m in _named(network, nn.Conv2d, nn.Linear)
    )
    names = [f"{name}.weight" for name, w in kept if w is not None and few_values(w) is not None]
    names = _once(network, names)
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    return names
