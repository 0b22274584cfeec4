"""Size and speed of packed ternary layers, beside general compressors on the codes, 4 a byte.

    python tests/benchmarks/packing.py [CHECKPOINT ...]

Default: a MicroNet of 8M weights, 90 % zeros, codes drawn at random (nothing to find but their
entropy), then with densities that differ from filter to filter and smooth kernels. zstd if the
package `zstandard` is installed. One core.
"""

import argparse
import lzma
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from model_compound_scaling.checkpoints.network_checkpoint import read_checkpoint
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import default_spec
from model_scoring.packed_file.quantized_layers import (
    Quantized,
    pack_layers,
    quantized,
    unpack_layers,
)

try:
    import zstandard
except ImportError:
    zstandard = None

Layers = dict[str, Quantized]
SPEED = 1.0  # million weights a second, at least


def random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """5 % each of two values."""
    return rng.choice(np.array([-1, 0, 1], dtype=np.float32), shape, p=[0.05, 0.9, 0.05])


def structured(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """As many zeros; each filter and input has a density of its own, neighbours are alike."""
    filters, inputs, height, width = shape
    noise = rng.normal(size=(filters, inputs, height + 2, width + 2))
    smooth = sum(noise[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
    scale = rng.uniform(0.5, 1.5, (filters, 1, 1, 1)) * rng.uniform(0.5, 1.5, (1, inputs, 1, 1))
    return np.where(np.abs(smooth * scale) > 5.25, np.sign(smooth), 0).astype(np.float32)


def micronet(draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Layers:
    """The block convolutions of the thesis' MicroNet."""
    torch.manual_seed(0)
    state = build(default_spec("cifar_micronet", 100)).state_dict()
    rng = np.random.default_rng(0)
    shapes = {name: tuple(t.shape) for name, t in state.items() if ".conv" in name}
    return {name: quantized(draw(rng, shape)) for name, shape in shapes.items()}


def checkpoint(path: Path) -> Layers:
    """The layers of few values of a checkpoint."""
    state = read_checkpoint(path).state
    return {name: q for name, t in state.items() if (q := quantized(t.numpy()))}


def two_bits(layers: Layers) -> bytes:
    """Codes of all layers, 2 bits each."""
    codes = np.concatenate([q.codes.reshape(-1) for q in layers.values()]) + 1
    four = np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4).astype(np.uint8)
    return (four @ np.array([1, 4, 16, 64], dtype=np.uint8)).tobytes()


def entropy_bytes(layers: Layers) -> float:
    """Order-0 entropy, layer by layer."""
    total = 0.0
    for q in layers.values():
        counts = np.unique(q.codes, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total / 8


def timed(function: Callable, *arguments: object) -> tuple[object, float]:
    start = time.process_time()  # one thread: what others do on the machine does not count
    result = function(*arguments)
    return result, time.process_time() - start


def report(title: str, layers: Layers) -> float:
    """Print a table; the slower of our two speeds."""
    weights = sum(q.codes.size for q in layers.values())
    print(f"{title}: {len(layers)} layers, {weights:,} weights")
    print(f"{'':18} {'bytes':>10} {'/ entropy':>10} {'encode':>8} {'decode':>8}  M weights/s")
    entropy, raw = entropy_bytes(layers), two_bits(layers)
    print(f"{'2 bits each':18} {len(raw):10,} {len(raw) / entropy:10.3f}")
    print(f"{'order-0 entropy':18} {math.ceil(entropy):10,} {1:10.3f}")
    shapes = {name: q.codes.shape for name, q in layers.items()}
    methods = {"lzma -9e": (lambda: lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
                            lzma.decompress)}  # fmt: skip
    if zstandard:
        methods["zstd -19"] = (
            lambda: zstandard.ZstdCompressor(level=19).compress(raw),
            zstandard.ZstdDecompressor().decompress,
        )
    methods["ec2t"] = (lambda: pack_layers(layers), lambda packed: unpack_layers(packed, shapes))
    for name, (encode, decode) in methods.items():
        packed, encoding = timed(encode)
        found, decoding = timed(decode, packed)
        whole = isinstance(packed, bytes)
        size = len(packed) if whole else sum(len(coded.content) for coded in packed.values())
        speeds = [weights / 1e6 / seconds for seconds in (encoding, decoding)]
        print(f"{name:18} {size:10,} {size / entropy:10.3f} {speeds[0]:8.2f} {speeds[1]:8.2f}")
    assert all(np.array_equal(found[n].codes, q.codes) for n, q in layers.items())
    return min(speeds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="*")
    paths = parser.parse_args().checkpoints
    torch.set_num_threads(1)
    for path in paths:
        report(path.name, checkpoint(path))
    titles = {"MicroNet, 90 % zeros": random, "the same with structure": structured}
    speeds = [] if paths else [report(title, micronet(draw)) for title, draw in titles.items()]
    return int(min(speeds, default=SPEED) < SPEED)


if __name__ == "__main__":
    sys.exit(main())
