"""Milliseconds per image of the C file (also with 8-bit activations, where weights are ternary),
PyTorch, torch.compile, onnxruntime (float32, and int8 in QDQ form, calibrated) and OpenVINO,
whatever of them is installed: one thread, one image, in turn.

    python tests/benchmarks/latency.py                   # all networks, about ten minutes
    python tests/benchmarks/latency.py ResNet-20 --json latency.json
    python tests/benchmarks/latency.py --checkpoint net_ternary.pt

Zeros are at random places, values and statistics are random: time does not depend on them.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers import randomize

from data.errors import UserError
from model_compound_scaling.checkpoints import load_network, read_checkpoint
from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.few_values import few_values
from model_compound_scaling.networks.quantizers import quantizers
from model_compound_scaling.networks.registry import NetworkSpec, default_spec, table_row
from model_quantization.activation_bits import begin, layer_bits
from model_scoring.dead_channels import thin
from model_scoring.export import onnx_file
from model_scoring.export.c_source import Compiled, Description, c_source, compiled
from model_scoring.export.latency import Calls, in_onnxruntime, interleaved, one_thread, spread

OPSET, CALIBRATION = 17, 16  # images
EIGHT = "C, 8-bit activations"
OTHERS = (EIGHT, "PyTorch", "torch.compile", "onnxruntime", "its int8", "OpenVINO")


def convolutions(network: nn.Module, part: str) -> Iterator[nn.Conv2d]:
    """Those in blocks, or the larger ones of 1x1."""
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1:
            continue
        pointwise = module.kernel_size == (1, 1) and min(module.weight.shape[:2]) >= 16
        if part in name and (part or (pointwise and "se" not in name and "fc" not in name)):
            yield module


def ternary(network: nn.Module, part: str, zeros: float, dead: float = 0.0) -> nn.Module:
    """Random codes with a share of zeros, and of filters that have nothing else."""
    generator = torch.Generator().manual_seed(0)
    for module in convolutions(network, part):
        weight, chance = module.weight, torch.rand(module.weight.shape, generator=generator)
        scale = float(weight.std())
        codes = torch.where(chance < zeros, 0.0, torch.where(chance < (1 + zeros) / 2, -1.1, 0.9))
        codes[torch.rand(len(weight), generator=generator) < dead] = 0
        weight.data = codes * scale
    return network


@dataclass(frozen=True)
class Case:
    name: str
    spec: NetworkSpec
    size: int
    part: str | None = None  # of the names of ternary layers; "": convolutions of 1x1; None: none
    zeros: float = 0.0
    dead: float = 0.0

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        network = build(self.spec)
        if self.part is not None:
            ternary(network, self.part, self.zeros, self.dead)
        return randomize(network)

    def __str__(self) -> str:
        return self.name + (f", {self.zeros:.0%} zeros" if self.part is not None else "")


RESNET, MICRONET = NetworkSpec("resnet20", 10), default_spec("cifar_micronet", 100)
CASES = [
    *(Case("ResNet-20", RESNET, 32, ".conv", zeros) for zeros in (0.64, 0.8, 0.9, 0.95)),
    Case("MicroNet 8M, 10 % dead filters", MICRONET, 32, ".conv", 0.9, 0.1),
    Case("EfficientNet-B0", NetworkSpec("efficientnet-b0", 1000), 224, "", 0.6),
    Case("MobileNetV2, dense", NetworkSpec("torchvision:mobilenet_v2", 1000), 224),
    Case("ResNet-18, dense", NetworkSpec("resnet18", 1000), 224),
]


def library(network: nn.Module, shape: tuple[int, int, int]) -> Compiled:
    source = c_source(thin(network, shape).network, shape, name="net", description=Description(()))
    with tempfile.TemporaryDirectory() as folder:
        return compiled(source, Path(folder))


def with_activations(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """8 bits for all inputs but the image."""
    quantized, images = copy.deepcopy(network), torch.randn(4, *shape)
    begin(quantized, layer_bits(quantized, [], bits=8, others=8), [(images, images)], seed=0)
    return quantized.eval()


def int8(model: "onnx.ModelProto", image: np.ndarray) -> bytes:  # noqa: F821
    """The model with 8-bit weights and activations, as onnxruntime makes it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rng = np.random.default_rng(0)

    class Images(CalibrationDataReader):
        left = CALIBRATION

        def get_next(self) -> dict | None:
            self.left -= 1
            images = rng.standard_normal(image.shape, dtype=np.float32)
            return {onnx_file.IMAGE: images} if self.left >= 0 else None

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder, f"{name}.onnx")) for name in "abc")
        onnx.save(model, plain)
        quant_pre_process(plain, ready)
        quantize_static(ready, done, Images(), quant_format=QuantFormat.QDQ, per_channel=True)
        return Path(done).read_bytes()


def in_openvino(content: bytes, image: np.ndarray) -> Callable[[], object]:
    """A pass, on one thread. Raises ImportError."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(core.read_model(content, b""), "CPU", settings)
    request = model.create_infer_request()
    return lambda: request.infer([image])


def runtimes(network: nn.Module, image: Tensor) -> Calls:
    """Whatever is installed."""
    fast, pixels, shape = torch.compile(network), image.numpy(), tuple(image.shape[1:])
    calls = {"C": library(network, shape).caller(pixels[0])}
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    if not quantizers(network) and any(few_values(layer.weight) is not None for layer in layers):
        calls[EIGHT] = library(with_activations(network, shape), shape).caller(pixels[0])
    calls["PyTorch"] = lambda: network(image)
    calls["torch.compile"] = lambda: fast(image)
    with suppress(ImportError, UserError):
        model = onnx_file.float_model(network, shape, OPSET)
        content = model.SerializeToString()
        calls["onnxruntime"] = in_onnxruntime(content, pixels)
        calls["its int8"] = in_onnxruntime(int8(model, pixels), pixels)
        calls["OpenVINO"] = in_openvino(content, pixels)
    return calls


def measure(network: nn.Module, shape: tuple[int, int, int], runs: int) -> dict[str, dict]:
    """Minimum and quartiles of each runtime, in milliseconds."""
    with one_thread():
        times = interleaved(runtimes(network, torch.randn(1, *shape)), runs=runs, limit=60)
    return {name: spread(found) for name, found in times.items()}


def measured(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, dict]]]:
    """Each network that is asked for."""
    for path in args.checkpoint:
        checkpoint = read_checkpoint(path)
        spec = network_spec(checkpoint)
        size = checkpoint.data.get("image_size") or table_row(spec.model).image_size or 32
        shape = (table_row(spec.model).channels, size, size)
        yield path.stem, measure(load_network(checkpoint, spec).eval(), shape, args.runs)
    for case in CASES:
        named = any(part.lower() in str(case).lower() for part in args.networks)
        if named or not (args.networks or args.checkpoint):
            shape = (table_row(case.spec.model).channels, case.size, case.size)
            yield str(case), measure(case.network(), shape, args.runs)


def to_markdown(found: Iterable[tuple[str, dict[str, dict]]]) -> Iterator[str]:
    """Minima, and in brackets how many times that of C; a row as soon as it is known."""
    yield f"| minimum, ms | C | {' | '.join(OTHERS)} |\n|{' --- |' * (len(OTHERS) + 2)}"
    for name, times in found:
        least = {runtime: figures["minimum"] for runtime, figures in times.items()}
        c = least["C"]
        cells = (f"{least[o]:.3f} ({least[o] / c:.2f}x)" if o in least else "" for o in OTHERS)
        yield f"| {name} | {c:.3f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help="parts of their names (default: all)")
    parser.add_argument("--checkpoint", nargs="*", type=Path, default=[], help="these, too")
    parser.add_argument("--runs", type=int, default=301, help="passes of each runtime")
    parser.add_argument("--json", type=Path, help="all quartiles, in milliseconds")
    args = parser.parse_args()
    kept: dict[str, dict] = {}

    def keep() -> Iterator[tuple[str, dict[str, dict]]]:
        for name, times in measured(args):
            kept[name] = times
            yield name, times

    for line in to_markdown(keep()):
        print(line, flush=True)
    if args.json:
        write_text(json.dumps(kept, indent=1) + "\n", args.json)


if __name__ == "__main__":
    main()
