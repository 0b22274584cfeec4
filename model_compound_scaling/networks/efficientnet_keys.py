"""EfficientNet weights: three key styles, and what each was trained with. Without torch: the
command lines read ORIGINS before they load it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass


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


def _lukemelas_names(stages: list[int], se: bool) -> Iterator[str]:
    squeeze = ("_se_reduce", "_se_expand") * se
    yield from ("_conv_stem", "_bn0")
    for i in range(sum(stages)):
        # blocks of the first stage do not expand, and number their BatchNorms from 1 on
        expand = () if i < stages[0] else ("_expand_conv", "_bn0")
        rest = ("_depthwise_conv", "_bn1", *squeeze, "_project_conv", "_bn2")
        yield from (f"_blocks.{i}.{part}" for part in (*expand, *rest))
    yield from ("_conv_head", "_bn1", "_fc")


def _torchvision_names(stages: list[int], se: bool) -> Iterator[str]:
    yield from ("features.0.0", "features.0.1")
    for s, blocks in enumerate(stages):
        n = int(s > 0)  # position of the depthwise convolution: an expand convolution goes before
        expand = ("0.0", "0.1") if n else ()
        squeeze = (f"{n + 1}.fc1", f"{n + 1}.fc2") * se
        rest = (f"{n}.0", f"{n}.1", *squeeze, f"{n + 2}.0", f"{n + 2}.1")
        for b in range(blocks):
            yield from (f"features.{s + 1}.{b}.block.{part}" for part in (*expand, *rest))
    yield from ("features.8.0", "features.8.1", "classifier.1")


def _timm_names(stages: list[int], se: bool) -> Iterator[str]:
    squeeze = ("se.conv_reduce", "se.conv_expand") * se
    separable = ("conv_dw", "bn1", *squeeze, "conv_pw", "bn2")  # here conv_pw projects
    inverted = ("conv_pw", "bn1", "conv_dw", "bn2", *squeeze, "conv_pwl", "bn3")  # here it expands
    yield from ("conv_stem", "bn1")
    for s, blocks in enumerate(stages):
        for b in range(blocks):
            yield from (f"blocks.{s}.{b}.{part}" for part in (inverted if s else separable))
    yield from ("conv_head", "bn2", "classifier")


@dataclass(frozen=True)
class KeyStyle:
    """How one code base names the layers, all in order of execution."""

    marker: str  # a key that only this style has
    # (blocks per stage, with squeeze-and-excitation) -> layer names
    names: Callable[[list[int], bool], Iterator[str]]
    origin: str  # what its weights usually come from


KEY_STYLES = {
    "lukemelas": KeyStyle("_conv_stem.weight", _lukemelas_names, "tf"),
    "torchvision": KeyStyle("features.1.0.block.2.0.weight", _torchvision_names, "torchvision"),
    "timm": KeyStyle("conv_stem.weight", _timm_names, "timm"),
}

REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage of B0
# (width, depth) by variant; of the lite ones, stem, head, first and last stage are not scaled
LITE = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4),
        "lite4": (1.4, 1.8)}  # fmt: skip


def lite_stages(depth: float) -> list[int]:
    """Blocks per stage of a lite variant."""
    return [1, *(math.ceil(depth * n) for n in REPEATS[1:-1]), 1]


# blocks per stage by their sum: the same wherever two variants have as many
_SCALED = [[math.ceil(d * n) for n in REPEATS] for d in (1.0, 1.1, 1.4, 1.8, 2.2, 2.6, 3.1)]
_ALL = (*_SCALED, *(lite_stages(depth) for _, depth in LITE.values()))
STAGES = {sum(stages): stages for stages in _ALL}


def key_style(keys: set[str]) -> str | None:
    """Name of the key style a state dict is written in, None if it is no EfficientNet."""
    return next((name for name, style in KEY_STYLES.items() if style.marker in keys), None)


def to_torchvision_keys(state: dict[str, object]) -> dict[str, object]:
    """State dict of any of the three styles -> torchvision's keys; anything else unchanged."""
    style = key_style(set(state))
    if style in (None, "torchvision"):
        return state
    depthwise = ("_depthwise_conv.weight", ".conv_dw.weight")
    stages = STAGES.get(sum(key.endswith(depthwise) for key in state))
    if stages is None:
        return state
    se = any("_se_reduce." in key or ".se." in key for key in state)
    names = KEY_STYLES[style].names(stages, se), _torchvision_names(stages, se)
    renamed = dict(zip(*names, strict=True))
    layers = ((key, *key.rpartition(".")) for key in state)
    return {f"{renamed.get(layer, layer)}.{name}": state[key] for key, layer, _, name in layers}
