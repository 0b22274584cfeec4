"""The networks by name: one row each, and what a checkpoint needs to describe one of them. Without
torch: the command lines read names from here before they load it. `building` builds."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

from data.errors import UserError, choose
from model_compound_scaling.networks.micronet_scaling import scaled_shape

Widths = dict[str, dict[str, int]]  # layer -> attribute -> value, see narrowing
Activations = dict[str, str]  # layer -> what its input is made, see quantizers.layer_inputs
ACTIVATION = re.compile("[iu][2-8]")  # signed or unsigned, and bits


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again: what our checkpoints store."""

    model: str
    num_classes: int | None  # None: not known yet, the data set will say
    arguments: dict = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)  # layers narrower than these arguments make them
    permanent: bool = False  # what hooks compute in the builder's network are parameters here
    activations: Activations = field(default_factory=dict)  # layers whose inputs are quantized

    def content(self) -> dict:
        """As plain values; without what makes no difference, as files always were."""
        values = asdict(self)
        return {k: v for k, v in values.items() if v or k not in OPTIONAL_FIELDS}


OPTIONAL_FIELDS = {"widths", "permanent", "activations"}  # of a description


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    builder: str  # module:function, or "torchvision:NAME"; takes num_classes and the arguments
    family: str  # decides the layers that are ternarized and the training recipe
    image_size: int  # what it was made for
    classifier: str  # the layer whose rows are the classes
    channels: int = 3
    arguments: dict = field(default_factory=dict)  # beside those of a NetworkSpec
    eval_crop: str = "standard"  # of large images, see data.transforms.eval_transform


HERE = __package__
# fmt: off
REGISTRY: dict[str, Row] = {
    **{name: Row(f"{HERE}.micronet:MicroNet", "micronet", size, "linear", arguments={"base": name})
       for name, size in (("cifar_micronet", 32), ("image_micronet", 200))},
    **{f"resnet{6 * n + 2}": Row(f"{HERE}.cifar_resnet:CifarResNet", "resnet", 32, "linear",
                                 arguments={"blocks": n})
       for n in (3, 5, 7, 9)},
    **{name: Row(f"torchvision:{name}", "resnet", 224, "fc")
       for name in ("resnet18", "resnet34", "resnet50")},
    **{f"efficientnet-b{i}": Row(f"{HERE}.efficientnet:efficientnet", "efficientnet", size,
                                 "classifier.1", arguments={"variant": f"b{i}"}, eval_crop="full")
       for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))},
    **{f"efficientnet-lite{i}": Row(f"{HERE}.efficientnet:efficientnet", "efficientnet", size,
                                    "classifier.1", arguments={"variant": f"lite{i}"})
       for i, size in enumerate((224, 240, 260, 280, 300))},
    "lenet-5": Row(f"{HERE}.lenet:LeNet5", "lenet", 28, "fc3", channels=1),
}
# fmt: on


# the argument that leaves out what a network needs in training only, and files may lack
WITHOUT_PARTS: dict[str, dict[str, object]] = {
    f"{module}:{name}": {"aux_logits": False}
    for module in ("torchvision", "torchvision.models")
    for name in ("googlenet", "inception_v3")
}


def canonical_name(name: str) -> str:
    """The table's spelling: `-` and `_` are the same; `module:function` stays as it is."""
    if ":" in name:
        return name
    plain = {row.replace("-", "").replace("_", ""): row for row in REGISTRY}
    key = name.lower().replace("-", "").replace("_", "")
    if key not in plain:
        choose("--model", name, (*REGISTRY, "torchvision:NAME", "module:function"))
    return plain[key]


def table_row(model: str) -> Row:
    """Row of a network; one from elsewhere gets its own. UserError if there is no such builder."""
    if model in REGISTRY:
        return REGISTRY[model]
    importable(model)
    # what these two do anyway, but with a warning that it will change
    arguments = {"init_weights": True} if model in WITHOUT_PARTS else {}
    return Row(model, "other", 224, "", arguments=arguments)


def importable(name: str) -> Callable[..., object]:
    """The builder that `torchvision:NAME` or `module:function` names."""
    module, _, function = name.partition(":")
    if module == "torchvision":
        from torchvision import models  # takes 1.5 s, which other networks need not wait for

        names = models.list_models(module=models)
        if function not in names:
            close = difflib.get_close_matches(function, names, n=3)
            hint = f"; close: {', '.join(close)}" if close else ""
            raise UserError(f"torchvision has no classification network {function!r}{hint}")
        return partial(models.get_model, function, weights=None)
    try:
        builder = getattr(importlib.import_module(module), function)
        accepted = inspect.signature(builder).parameters.values()
    except Exception as error:  # importing runs the user's code, which may fail in any way
        reason = " ".join(str(error).split())
        raise UserError(f"--model {name} is no importable function: {reason}") from error
    if not any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in accepted):
        raise UserError(f"--model {name} must take num_classes=")
    return builder


THESIS_SCALING = (1.4, 1.2, 3.5)  # depth and width multiplier, and the exponent of both


def default_spec(model: str, num_classes: int) -> NetworkSpec:
    """A network of the table with no more said; MicroNets as large as the thesis' best one."""
    if table_row(model).family != "micronet":
        return NetworkSpec(model, num_classes)
    depth, width, phi = THESIS_SCALING
    shape = scaled_shape(model, depth=depth**phi, width=width**phi)
    return NetworkSpec(model, num_classes, shape)
