"""What EC2T adds to a training step, what a teacher adds to that beside its forward pass, and what
activations of 4 bits add: two kinds of steps in turn, and the median of their ratios.

    python tests/benchmarks/ec2t_step.py            # on the CPU, or the GPU if there is one
    python tests/benchmarks/ec2t_step.py --no-cuda --pairs 20

Plain is the same network, optimizer (Adam) and batch with no quantization.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import default_spec, table_row
from model_compound_scaling.training.distillation import Distillation, Teacher
from model_quantization.activation_bits import StepSizes, begin, layer_bits
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.layer_selection import ternarized_names
from tests.benchmarks.pairing import paired

CASES = [("resnet20", 10, 128), ("cifar_micronet", 100, 32)]  # network, classes, batch on a CPU
PAIRS = [("plain", "EC2T"), ("EC2T, forward", "distilled"), ("EC2T", "EC2T, 4-bit inputs")]
WHOLE = torch.tensor(1.0), torch.tensor(0.0)  # a teacher's images are as the student's
GPU_CASES = [("resnet20", 10, 128), ("cifar_micronet", 100, 128)]


def make_step(model: str, classes: int, batch: int, device: torch.device, kind: str) -> Callable:
    """A training step without arguments, of a kind in PAIRS."""
    torch.manual_seed(0)
    network = build(default_spec(model, classes)).to(device)
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, classes, (batch,), device=device)
    ternarizer, parameters = None, network.parameters()
    teacher = Teacher(build(default_spec(model, classes)), *WHOLE, torch.arange(classes)).to(device)
    distillation = Distillation(teacher, 0.5, 4.0)
    if kind != "plain":
        names = ternarized_names(network, family=table_row(model).family)
        ternarizer = Ternarizer(network, names, initial_scale=0.45, gamma=0.15)
        parameters = ternarizer.parameter_groups(lr=1e-4, centroid_lr=1e-4)
    if kind == "EC2T, 4-bit inputs":
        bits = layer_bits(network, names, bits=4, others=8)
        begin(network, bits, [(images, labels)], seed=0)
    sizes = StepSizes(network)
    if ternarizer:
        parameters = sizes.groups(parameters, lr=1e-4)
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        network.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        if kind in ("EC2T, forward", "distilled"):
            taught = teacher(images)
        if kind == "distilled":
            loss = distillation.loss(loss, logits, taught)
        loss.backward()
        if ternarizer:
            ternarizer.prepare_step()
            sizes.prepare_step()
        optimizer.step()
        if ternarizer:
            sizes.finish_step()
            ternarizer.finish_step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--cuda", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available()
    )
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args()
    device = torch.device("cuda" if args.cuda else "cpu")
    repeats = 10 if args.cuda else 1
    print(f"{'network':16} batch  {'steps, ms':44}  ratio (quartiles)")
    for model, classes, batch in GPU_CASES if args.cuda else CASES:
        for pair in PAIRS:
            steps = tuple(make_step(model, classes, batch, device, kind) for kind in pair)
            *times, (low, middle, high) = paired(
                steps, device=device, pairs=args.pairs, repeats=repeats
            )
            shown = ", ".join(f"{k} {1e3 * t:.1f}" for k, t in zip(pair, times, strict=True))
            print(f"{model:16} {batch:5}  {shown:44}  {middle:.3f} ({low:.3f} .. {high:.3f})")


if __name__ == "__main__":
    main()
