"""MicroNet: a pre-activation residual network that grows in depth and width. One class serves both
input sizes; `base`, a row of `BASELINES`, says what differs between them."""

import torch.nn.functional as F
from torch import Tensor, nn

from model_compound_scaling.networks.micronet_scaling import BASELINES


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
            conv = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(F.relu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(self.conv2(out)) + self.shortcut(x)


class MicroNet(nn.Module):
    """(N, 3, H, W) images -> (N, num_classes) logits. `blocks` and `channels` have one entry per
    stage; `scaled_shape` computes them."""

    def __init__(
        self,
        *,
        base: str,
        num_classes: int,
        blocks: list[int],
        channels: list[int],
        stem: int,
        head: int | None = None,
    ) -> None:
        super().__init__()
        baseline = BASELINES[base]
        self.conv1 = nn.Conv2d(3, stem, 3, stride=baseline.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = len(blocks)
        c_in, dropout = stem, baseline.block_dropout
        shapes = zip(blocks, channels, baseline.strides, strict=True)
        for i, (n, c_out, stride) in enumerate(shapes):
            first = Block(c_in, c_out, stride=stride, dropout=dropout)
            rest = (Block(c_out, c_out, stride=1, dropout=dropout) for _ in range(n - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            c_in = c_out
        if head is not None:
            self.conv2 = nn.Conv2d(c_in, head, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(head)
            c_in = head
        self.dropout = nn.Dropout(baseline.head_dropout)
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
