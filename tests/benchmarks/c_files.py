"""The C files of checkpoints: milliseconds per image on one thread, all files in turn; with images,
how many get another top-1 class than in PyTorch, and than in PyTorch with float64.

    python tests/benchmarks/c_files.py runs/act/*/best.pt
    python tests/benchmarks/c_files.py runs/act/*/best.pt --data-path cifar10_jpeg
"""

import argparse
import copy
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from latency import library
from torch import Tensor, nn

from data import Data, load_data
from model_compound_scaling.checkpoints import Checkpoint, load_network, read_checkpoint
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.registry import table_row
from model_scoring.export.c_source import Compiled
from model_scoring.export.latency import interleaved, one_thread


def opened(path: Path) -> tuple[Checkpoint, nn.Module, Compiled]:
    """A checkpoint, its network, and that in C."""
    checkpoint = read_checkpoint(path)
    spec = network_spec(checkpoint)
    network, row = load_network(checkpoint, spec).eval(), table_row(spec.model)
    size = checkpoint.data.get("image_size") or row.image_size
    return checkpoint, network, library(network, (row.channels, size, size))


def validation(checkpoint: Checkpoint, channels: int, folder: Path | None) -> Data:
    """The images as the checkpoint had them."""
    known = checkpoint.data
    return load_data(
        known["dataset"], data_path=folder, splits=("val",), image_size=known["image_size"],
        channels=channels, normalize=(known["mean"], known["std"]),
        class_names=known.get("class_names", ()),
    )  # fmt: skip


def compare(network: nn.Module, files: Compiled, data: Data) -> str:
    """In how many images the top-1 classes of any two ways differ."""
    double = copy.deepcopy(network).double()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "C": lambda images: torch.from_numpy(files.run(images.numpy())),
        "PyTorch": network,
        "float64": lambda images: double(images.double()),
    }
    found = [[way(images).argmax(1) for way in ways.values()] for images, _ in data.val.epoch(0)]
    classes = zip(ways, map(torch.cat, zip(*found, strict=True)), strict=True)
    counts = (f"{a} / {b} {int((x != y).sum())}" for (a, x), (b, y) in combinations(classes, 2))
    return f"other top-1 in {data.val.samples:,} images: {', '.join(counts)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data-path", type=Path, help="compare classes on these images, too")
    parser.add_argument("--runs", type=int, default=1500, help="passes of each file, in 40 s")
    args = parser.parse_args()
    networks = {str(path): opened(path) for path in args.checkpoints}
    calls = {
        name: files.caller(torch.randn(files.source.shape).numpy())
        for name, (_, _, files) in networks.items()
    }
    for name, times in interleaved(calls, runs=args.runs, limit=40).items():
        print(f"{min(times):8.3f} ms  {name}", flush=True)
    if args.data_path:
        with one_thread():
            for name, (checkpoint, network, files) in networks.items():
                data = validation(checkpoint, files.source.shape[0], args.data_path)
                print(f"{name}: {compare(network, files, data)}", flush=True)


if __name__ == "__main__":
    main()
