"""MicroNet's baselines, and the shapes that depth and width multipliers make of them."""

import math
from dataclasses import dataclass

from data.errors import UserError

LARGEST_SCALE = 100  # times the baseline's depth or width


@dataclass(frozen=True)
class Baseline:
    """An unscaled MicroNet: one entry of each tuple per stage."""

    stem: int
    stem_stride: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    head: int | None  # channels of the 1x1 convolution before the classifier
    block_dropout: float
    head_dropout: float


# fmt: off
BASELINES = {
    "cifar_micronet": Baseline(
        stem=16, stem_stride=1, channels=(16, 32, 64), blocks=(7, 7, 7), strides=(1, 2, 2),
        head=None, block_dropout=0.2, head_dropout=0.0),
    "image_micronet": Baseline(
        stem=32, stem_stride=2, channels=(16, 24, 40, 80, 112, 192, 320),
        blocks=(1, 2, 2, 3, 3, 4, 1), strides=(1, 2, 2, 2, 1, 2, 1),
        head=1280, block_dropout=0.0, head_dropout=0.3),
}
# fmt: on


def round_channels(channels: float) -> int:
    """Nearest multiple of 8, at least 8, never below 90 % of the exact value."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def scaled_shape(model: str, *, depth: float, width: float) -> dict[str, list[int] | int | None]:
    """Blocks and channels of a baseline scaled by depth and width; arguments of `MicroNet`."""
    base = BASELINES[model]
    if max(depth, width) > LARGEST_SCALE:
        raise UserError(
            f"depth x {depth:.4g} and width x {width:.4g} are no sensible network (largest "
            f"{LARGEST_SCALE}): lower the multipliers or phi"
        )
    return {
        # rounded first: 1.1 * 10 is 11.000000000000002 in floating point, which is 11 blocks
        "blocks": [max(1, math.ceil(round(depth * n, 9))) for n in base.blocks],
        "channels": [round_channels(width * c) for c in base.channels],
        "stem": round_channels(width * base.stem),
        "head": base.head and round_channels(width * base.head),
    }
