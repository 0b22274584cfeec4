"""MicroNet: a pre-activation residual network that grows in depth and width.

One class serves both input sizes; a row of `BASELINES` says what differs between them.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

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


BASELINES = {
    "cifar_micronet": Baseline(16, 1, (16, 32, 64), (7, 7, 7), (1, 2, 2), None, 0.2, 0.0),
    "image_micronet": Baseline(
        stem=32,
        stem_stride=2,
        channels=(16, 24, 40, 80, 112, 192, 320),
        blocks=(1, 2, 2, 3, 3, 4, 1),
        strides=(1, 2, 2, 2, 1, 2, 1),
        head=1280,
        block_dropout=0.0,
        head_dropout=0.3,
    ),
}


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


class Block(nn.Module):
    """BN - conv - BN - ReLU - dropout - conv - BN, plus the shortcut; no ReLU after the sum."""

    def __init__(self, c_in: int, c_out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(F.relu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(self.conv2(out)) + self.shortcut(x)


class MicroNet(nn.Module):
    """(N, 3, H, W) images -> (N, num_classes) logits.

    `blocks` and `channels` have one entry per stage; `scaled_shape` computes them.
    """

    def __init__(
        self,
        *,
        base: Baseline,
        num_classes: int,
        blocks: list[int],
        channels: list[int],
        stem: int,
        head: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, stride=base.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = len(blocks)
        c_in = stem
        for i, (n, c_out, stride) in enumerate(zip(blocks, channels, base.strides, strict=True)):
            strides = [stride] + [1] * (n - 1)
            inputs = [c_in] + [c_out] * (n - 1)
            stage = [
                Block(c, c_out, stride=s, dropout=base.block_dropout)
                for c, s in zip(inputs, strides, strict=True)
            ]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
            c_in = c_out
        if head is not None:
            self.conv2 = nn.Conv2d(c_in, head, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(head)
            c_in = head
        self.dropout = nn.Dropout(base.head_dropout)
        self.linear = nn.Linear(c_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        if hasattr(self, "conv2"):
            x = self.bn2(self.conv2(x))
        x = F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1)
        return self.linear(self.dropout(x))
