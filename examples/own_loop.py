"""EC2T in a loop of one's own: a plain PyTorch loop, and the same one with six more lines.

    python examples/own_loop.py resnet18 result.pt            # torchvision's
    python examples/own_loop.py timm:test_resnet result.pt    # timm's, where it is installed

The first loop trains a network on the built-in Shapes images, the second makes it ternary.
docs/own-loop.md says what else there is, and how the result is scored and packed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.shapes import make_shapes

BATCH, CLASSES = 50, 10
Data = tuple[Tensor, Tensor]  # uint8 (N, 3, 32, 32), and labels (N,)


def plain_loop(model: nn.Module, data: Data, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        model.train()
        for images, labels in batches(*data):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss:.2f}")


def ternary_loop(model: nn.Module, data: Data, epochs: int) -> None:
    from model_quantization.ec2t import Ternarizer

    ternarizer = Ternarizer(model, initial_scale=0.3, gamma=0.15)
    optimizer = torch.optim.Adam(ternarizer.parameter_groups(lr=1e-3, centroid_lr=1e-4))
    for epoch in range(epochs):
        ternarizer.freeze(epoch >= 0.6 * epochs)
        model.train()
        for images, labels in batches(*data):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            ternarizer.prepare_step()
            optimizer.step()
            ternarizer.finish_step()
        print(f"epoch {epoch + 1}: loss {loss:.2f}")


def batches(images: Tensor, labels: Tensor) -> Iterator[Data]:
    """Shuffled float images in 0..1, whole batches only."""
    for index in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
        yield images[index] / 255, labels[index]


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Top-1 in percent."""
    model.eval()
    parts = zip(*(tensor.split(500) for tensor in data), strict=True)
    hits = sum((model(images / 255).argmax(1) == labels).sum() for images, labels in parts)
    return 100 * int(hits) / len(data[1])


def make_model(name: str) -> nn.Module:
    """A network of torchvision, or of timm."""
    library, _, own_name = name.rpartition(":")
    if library == "timm":
        import timm

        return timm.create_model(own_name, num_classes=CLASSES)
    return torchvision.models.get_model(name, num_classes=CLASSES)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a network of torchvision, or timm:NAME")
    parser.add_argument("result", type=Path, help="file of its state dict, once it is ternary")
    parser.add_argument("--epochs", type=int, default=5, help="of each loop")
    parser.add_argument("--images", type=int, default=10_000, help="so many to train on")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val = ([t.to(device) for t in make_shapes(split)] for split in ("train", "val"))
    train = [t[: args.images] for t in train]
    model = make_model(args.model).to(device)
    for loop in (plain_loop, ternary_loop):
        loop(model, train, args.epochs)
        zeros = 100 * torch.cat([p.flatten() == 0 for p in model.parameters()]).float().mean()
        print(f"{loop.__name__}: top-1 {accuracy(model, val):.2f} %, zeros {zeros:.1f} %")
    torch.save(model.state_dict(), args.result)


if __name__ == "__main__":
    main()
