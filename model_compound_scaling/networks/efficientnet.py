"""EfficientNet B0-B7 (Tan and Le 2019): torchvision's networks, and the weights of three origins.

The same weights come under three key styles and with two arithmetics. Keys alone are not enough:
weights trained with TensorFlow need BatchNorm eps 1e-3 and "SAME" padding, torchvision's and most
of timm's need torchvision's eps and symmetric padding; with the wrong one, logits are off by a
factor.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Origin:
    """What a family of weights was trained with; None keeps torchvision's value."""

    bn_eps: float | None
    bn_momentum: float | None
    same_padding: bool


ORIGINS = {
    "tf": Origin(1e-3, 0.01, True),  # lukemelas, timm's tf_ models
    "torchvision": Origin(None, None, False),  # eps 1e-5, from B5 on 1e-3
    "timm": Origin(1e-5, 0.1, False),
}


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME": output is ceil(input / stride), an odd zero goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, k, s in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def efficientnet(
    variant: str, *, num_classes: int = 1000, origin: str = "torchvision"
) -> torchvision.models.EfficientNet:
    """(N, 3, H, W) images -> (N, num_classes) logits; `variant` is b0 ... b7."""
    model = torchvision.models.get_model(
        f"efficientnet_{variant}", weights=None, num_classes=num_classes
    )
    rules = ORIGINS[origin]
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = rules.bn_eps or module.eps
            module.momentum = rules.bn_momentum or module.momentum
        # with stride 1 and an odd kernel both paddings are the same
        elif isinstance(module, nn.Conv2d) and rules.same_padding and module.stride != (1, 1):
            module.__class__ = SameConv2d
    return model


def _lukemelas_names(stages: list[int]) -> Iterator[str]:
    yield from ("_conv_stem", "_bn0")
    for i in range(sum(stages)):
        expand = () if i < stages[0] else ("_expand_conv", "_bn0")
        rest = ("_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
        yield from (f"_blocks.{i}.{part}" for part in (*expand, *rest))
    yield from ("_conv_head", "_bn1", "_fc")


def _torchvision_names(stages: list[int]) -> Iterator[str]:
    yield from ("features.0.0", "features.0.1")
    for s, blocks in enumerate(stages):
        n = int(s > 0)  # position of the depthwise convolution: an expand convolution goes before
        expand = ("0.0", "0.1") if n else ()
        rest = (f"{n}.0", f"{n}.1", f"{n + 1}.fc1", f"{n + 1}.fc2", f"{n + 2}.0", f"{n + 2}.1")
        for b in range(blocks):
            yield from (f"features.{s + 1}.{b}.block.{part}" for part in (*expand, *rest))
    yield from ("features.8.0", "features.8.1", "classifier.1")


def _timm_names(stages: list[int]) -> Iterator[str]:
    se = ("se.conv_reduce", "se.conv_expand")
    separable = ("conv_dw", "bn1", *se, "conv_pw", "bn2")  # here conv_pw projects
    inverted = ("conv_pw", "bn1", "conv_dw", "bn2", *se, "conv_pwl", "bn3")  # here it expands
    yield from ("conv_stem", "bn1")
    for s, blocks in enumerate(stages):
        for b in range(blocks):
            yield from (f"blocks.{s}.{b}.{part}" for part in (inverted if s else separable))
    yield from ("conv_head", "bn2", "classifier")


@dataclass(frozen=True)
class KeyStyle:
    """How one code base names the layers, all in order of execution."""

    marker: str  # a key that only this style has
    names: Callable[[list[int]], Iterator[str]]  # (blocks per stage) -> layer names
    origin: str  # what its weights usually come from


KEY_STYLES = {
    "lukemelas": KeyStyle("_conv_stem.weight", _lukemelas_names, "tf"),
    "torchvision": KeyStyle("features.1.0.block.1.fc1.weight", _torchvision_names, "torchvision"),
    "timm": KeyStyle("conv_stem.weight", _timm_names, "timm"),
}
# blocks per stage by their sum: B0's repeats scaled by each variant's depth (B1 and B2 agree)
STAGES = {
    sum(stages): stages
    for depth in (1.0, 1.1, 1.4, 1.8, 2.2, 2.6, 3.1)
    for stages in [[math.ceil(depth * n) for n in (1, 2, 2, 3, 3, 4, 1)]]
}


def key_style(keys: set[str]) -> str | None:
    """Name of the key style a state dict is written in, None if it is no EfficientNet."""
    return next((name for name, style in KEY_STYLES.items() if style.marker in keys), None)


def to_torchvision_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of any of the three styles -> torchvision's keys; anything else unchanged."""
    style = key_style(set(state))
    if style in (None, "torchvision"):
        return state
    depthwise = ("_depthwise_conv.weight", ".conv_dw.weight")
    stages = STAGES.get(sum(key.endswith(depthwise) for key in state))
    if stages is None:
        return state
    renamed = dict(zip(KEY_STYLES[style].names(stages), _torchvision_names(stages), strict=True))
    layers = ((key, *key.rpartition(".")) for key in state)
    return {f"{renamed.get(layer, layer)}.{name}": state[key] for key, layer, _, name in layers}
