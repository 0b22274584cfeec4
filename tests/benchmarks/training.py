"""How close training comes to the bare network: the input pipeline against torchvision's, and the
training loop against forward, backward and optimizer step alone. Ratios, each within one run.

    python tests/benchmarks/training.py                 # on the CPU, or the GPU if there is one
    python tests/benchmarks/training.py --no-cuda --pairs 12
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.augmentation import CUTOUT
from data.batches import WHOLE, CachedLoader, Preparation, Schedule
from data.datasets import CIFAR_STATS, COLOUR
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.training.loop import Progress, train_epoch
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.step import TrainStep
from tests.benchmarks.pairing import paired

BATCH = 128
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


class Pictures(Dataset):
    """Images in memory as torchvision's CIFAR classes hold them: one PIL image at a time."""

    def __init__(self, images: np.ndarray, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def cutout(image: torch.Tensor) -> torch.Tensor:
    """A square of zeros around a random pixel, cut off at the border."""
    y, x = (int(torch.randint(size, ())) for size in image.shape[1:])
    half = CUTOUT // 2
    image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return image


def torchvision_loader(images: torch.Tensor, workers: int) -> DataLoader:
    """The same recipe with torchvision's PIL transforms in worker processes."""
    recipe = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.075),
        transforms.ToTensor(),
        transforms.Normalize(*CIFAR_STATS),
        transforms.Lambda(cutout),
    ]
    dataset = Pictures(images.permute(0, 2, 3, 1).numpy(), transforms.Compose(recipe))
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)


def cached_loader(images: torch.Tensor, device: torch.device, batch: int = BATCH) -> CachedLoader:
    """The project's pipeline."""
    labels = torch.arange(len(images), device=device) % 100
    schedule = Schedule(len(images), batch_size=batch, train=True, seed=0, part=WHOLE)
    prepare = Preparation(COLOUR, CIFAR_STATS, 0)
    return CachedLoader(images.to(device), labels, schedule=schedule, prepare=prepare)


def compare_pipelines(device: torch.device, *, images: int, pairs: int) -> None:
    pictures = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    ours, theirs = cached_loader(pictures, device), torchvision_loader(pictures, 2)
    epochs = (lambda: sum(1 for _ in ours.epoch(0)), lambda: sum(1 for _ in theirs))
    fast, slow, (low, middle, high) = paired(epochs, device=device, pairs=pairs)
    print("input pipeline, CIFAR recipe: images/s")
    print(f"  torchvision, PIL, 2 workers {images / slow:10,.0f}")
    print(f"  batched, on {device.type:4}            {images / fast:10,.0f}")
    print(f"  ratio {middle:.2f} ({low:.2f} .. {high:.2f}); at least 5\n")


def compare_loops(device: torch.device, *, batches: int, pairs: int) -> None:
    """One epoch of training against as many bare steps on one batch that lies on the device."""
    torch.manual_seed(0)
    shape = scaled_shape("cifar_micronet", depth=1.4, width=1.2)
    network = build(NetworkSpec("cifar_micronet", 100, shape)).to(device)
    optimizer = make_sgd(network, **SGD)
    step = TrainStep(network, network=network, optimizer=optimizer, classes=100)
    pictures = torch.randint(0, 256, (batches * BATCH, 3, 32, 32), dtype=torch.uint8)
    loader = cached_loader(pictures, device)
    images, labels = next(loader.epoch(0))

    def bare() -> None:
        network.train()
        for _ in range(batches):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def loop() -> None:
        train_epoch(step, loader, Progress({}), seed=0, epoch=0, label="")

    plain, whole, (low, middle, high) = paired((bare, loop), device=device, pairs=pairs)
    print(f"training loop, MicroNet d1.4 w1.2, batch {BATCH}, on {device.type}: ms a step")
    print(f"  forward, backward, step  {1e3 * plain / batches:8.1f}")
    print(f"  training loop            {1e3 * whole / batches:8.1f}")
    print(f"  ratio {middle:.3f} ({low:.3f} .. {high:.3f}); at most 1.03")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--cuda", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available()
    )
    parser.add_argument("--pairs", type=int, default=8)
    args = parser.parse_args()
    device = torch.device("cuda" if args.cuda else "cpu")
    compare_pipelines(device, images=50_000 if args.cuda else 10_000, pairs=args.pairs)
    compare_loops(device, batches=390 if args.cuda else 1, pairs=args.pairs)


if __name__ == "__main__":
    main()
