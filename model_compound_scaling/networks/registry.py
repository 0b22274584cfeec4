"""The networks by name: one row each, and what a checkpoint needs to describe one of them."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from data.errors import CheckpointError, UserError
from model_compound_scaling.efficientnet import efficientnet
from model_compound_scaling.lenet import LeNet5
from model_compound_scaling.micronet import BASELINES, MicroNet, scaled_shape
from model_compound_scaling.resnet import CifarResNet
from model_compound_scaling.widths import Widths, narrowed


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again: what our checkpoints store."""

    model: str
    num_classes: int | None  # None: not known yet, the data set will say
    arguments: dict = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)  # layers narrower than these arguments make them

    def content(self) -> dict:
        """As plain values; without `widths` where nothing is narrowed, as files always were."""
        values = asdict(self)
        return values if self.widths else {k: v for k, v in values.items() if k != "widths"}


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    build: Callable[..., nn.Module]  # takes num_classes and the spec's arguments
    family: str  # decides the layers that are ternarized and the training recipe
    image_size: int  # what it was made for
    classifier: str  # the layer whose rows are the classes
    channels: int = 3


def _torchvision(name: str, **arguments: object) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **arguments)


EFFICIENTNET_SIZES = (224, 240, 260, 300, 380, 456, 528, 600)
REGISTRY: dict[str, Row] = {
    "cifar_micronet": Row(
        partial(MicroNet, base=BASELINES["cifar_micronet"]), "micronet", 32, "linear"
    ),
    "image_micronet": Row(
        partial(MicroNet, base=BASELINES["image_micronet"]), "micronet", 200, "linear"
    ),
    **{
        f"resnet{6 * n + 2}": Row(partial(CifarResNet, blocks=n), "resnet", 32, "linear")
        for n in (3, 5, 7, 9)
    },
    **{
        name: Row(partial(_torchvision, name), "resnet", 224, "fc")
        for name in ("resnet18", "resnet34", "resnet50")
    },
    **{
        f"efficientnet-b{i}": Row(
            partial(efficientnet, f"b{i}"), "efficientnet", size, "classifier.1"
        )
        for i, size in enumerate(EFFICIENTNET_SIZES)
    },
    "lenet-5": Row(LeNet5, "lenet", 28, "fc3", channels=1),
}


def canonical_name(name: str) -> str:
    """The table's spelling: `-` and `_` are the same; `module:function` stays as it is."""
    if ":" in name:
        return name
    plain = {row.replace("-", "").replace("_", ""): row for row in REGISTRY}
    key = name.lower().replace("-", "").replace("_", "")
    if key not in plain:
        close = difflib.get_close_matches(name.lower(), REGISTRY, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(
            f"unknown --model {name!r}{hint} Choose from {', '.join(REGISTRY)}, "
            "torchvision:NAME or module:function"
        )
    return plain[key]


def table_row(model: str) -> Row:
    """Row of a network; networks from elsewhere get one of their own."""
    if model in REGISTRY:
        return REGISTRY[model]
    module, _, name = model.partition(":")
    builder = _torchvision_builder(name) if module == "torchvision" else _builder(module, name)
    return Row(builder, "other", 224, "")


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        raise UserError(
            f"torchvision has no classification network {name!r}"
            + (f"; close: {', '.join(close)}" if close else "")
        )
    return partial(_torchvision, name)


def _builder(module: str, name: str) -> Callable[..., nn.Module]:
    try:
        builder = getattr(importlib.import_module(module), name)
        accepted = inspect.signature(builder).parameters.values()
    except Exception as error:  # importing runs the user's code, which may fail in any way
        reason = " ".join(str(error).split())
        raise UserError(f"--model {module}:{name} is no importable function: {reason}") from error
    if not any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in accepted):
        raise UserError(f"--model {module}:{name} must take num_classes=")
    return builder


THESIS_SCALING = (1.4, 1.2, 3.5)  # depth and width multiplier, and the exponent of both


def default_spec(model: str, num_classes: int) -> NetworkSpec:
    """A network of the table with no more said; MicroNets as large as the thesis' best one."""
    if table_row(model).family != "micronet":
        return NetworkSpec(model, num_classes)
    depth, width, phi = THESIS_SCALING
    shape = scaled_shape(model, depth=depth**phi, width=width**phi)
    return NetworkSpec(model, num_classes, shape)


def build(spec: NetworkSpec) -> nn.Module:
    """A freshly initialised network."""
    builder = table_row(spec.model).build
    try:
        network = builder(num_classes=spec.num_classes, **spec.arguments)
    except Exception as error:
        if spec.model in REGISTRY:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"--model {spec.model} cannot be built: {reason}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"--model {spec.model} returned a {type(network).__name__}, no nn.Module")
    return narrowed(network, spec.widths)


def skeleton(spec: NetworkSpec) -> nn.Module:
    """The network, where possible without memory for its values."""
    try:
        with torch.device("meta"):
            return build(spec)
    except CheckpointError:
        raise
    except (UserError, NotImplementedError):  # constructors that look at values
        return build(spec)


def expected_tensors(spec: NetworkSpec) -> dict[str, Tensor]:
    """Names and shapes of the state dict."""
    return skeleton(spec).state_dict()
