"""Time to count a network under both rule sets, after imports and without building it.

python tests/benchmarks/scoring.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn

from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import default_spec, table_row
from model_scoring.counting.scoring import score

SPARSITY = 0.9
# network, classes, image size, seconds on 2 cores
CASES = (
    ("cifar_micronet", 100, 32, 1.0),
    ("resnet18", 1000, 224, 0.3),
    ("efficientnet-b1", 1000, 240, 1.0),
)


@torch.no_grad()
def make_ternary(network: nn.Module) -> None:
    """Ternary convolutions with 90 % zeros, all but the first one."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions[1:]:
        draw = torch.rand_like(module.weight)
        side = (draw < 1 - SPARSITY).float() - 3 * (draw < (1 - SPARSITY) / 2).float()
        module.weight.copy_(0.1 * side)


def main() -> int:
    slow = 0
    for model, classes, size, limit in CASES:
        network, family = build(default_spec(model, classes)), table_row(model).family
        make_ternary(network)
        start = time.perf_counter()
        result = score(network, (3, size, size), family=family)
        seconds = time.perf_counter() - start
        slow += seconds > limit
        totals = ", ".join(f"{k} {t.ops / 1e6:.1f}M ops" for k, t in result.totals.items())
        print(
            f"{model:16} {result.parameters / 1e6:5.1f}M parameters, {100 * result.zeros:.0f} % "
            f"zeros: {seconds:.2f} s (at most {limit} s); {totals}"
        )
    return slow


if __name__ == "__main__":
    sys.exit(main())
