"""What tests of several rooms make their networks and files with."""

import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import run_compound_scaling
from model_compound_scaling.checkpoints.network_checkpoint import network_content
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.quantizers import quantize_inputs, quantizers
from model_compound_scaling.networks.registry import NetworkSpec

# the smallest MicroNet whose convolutions are large enough for all formats and rules
MICRONET = NetworkSpec(
    "cifar_micronet", 10, {"blocks": [1, 1, 1], "channels": [16, 16, 32], "stem": 16}
)


def save_images(folder: Path, count: int, size=16, *, vary=False, level=None) -> Path:
    """Make a folder of PNG files of noise, 00.png and so on; always the same ones.

    size: pixels of a square's side, or (height, width); `vary` adds a few from file to file.
    level: all values from here to `level` + 60, instead of the whole range.
    """
    folder.mkdir(parents=True)
    name = os.fsencode(f"{folder.parent.name}/{folder.name}")
    rng = np.random.default_rng(zlib.crc32(name))
    low, high = (0, 256) if level is None else (level, level + 60)
    height, width = (size, size) if isinstance(size, int) else size
    for i in range(count):
        shape = (height + vary * (i % 3), width + vary * 2 * (i % 2), 3)
        Image.fromarray(rng.integers(low, high, shape, dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


def save_tree(root: Path, classes=("dark", "light"), *, train=24, val=8, size=16) -> Path:
    """Make train/CLASS and val/CLASS with so many images each, brighter from class to class."""
    for split, count in (("train", train), ("val", val)):
        for k, name in enumerate(classes):
            save_images(root / split / name, count, size, level=60 + 180 * k // len(classes))
    return root


TRAINING = "--dataset ImageFolder --image-size 16 --grid 0.1 0.5 --phi 1 --batch-size 8 --no-cuda"
POINT = "cifar_micronet_d0.1_w0.5_phi1"  # the folder of that grid's one network


def scale(images: Path, output: Path, *flags: str) -> int:
    """Stage 1 on a folder of images, two epochs of a tiny MicroNet; flags given here win."""
    common = [*TRAINING.split(), "--epochs", "2", "--workers", "0"]
    where = ["--data-path", str(images), "--output", str(output)]
    return run_compound_scaling.main([*common, *where, *flags])


def save_network(path: Path, network: nn.Module, spec: NetworkSpec, **data) -> Path:
    """Make a checkpoint that describes its network and its data: Shapes, or as `data` says."""
    data = {"dataset": "Shapes", "image_size": 32, **data}
    torch.save(network_content(network, spec, data), path)
    return path


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics and biases, so that every channel matters; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
        elif getattr(module, "bias", None) is not None:
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 4)
    return network.eval()


def few_values(network: nn.Module, values=(-0.05, 0.0, 0.1), *, part=".conv") -> nn.Module:
    """These values only, at random places, in the layers whose names contain `part`."""
    generator = torch.Generator().manual_seed(0)
    for name, module in network.named_modules():
        if part in name:
            codes = torch.randint(len(values), module.weight.shape, generator=generator)
            module.weight.data = torch.tensor(values)[codes]
    return network


def ternary_micronet() -> nn.Module:
    """MICRONET with ternary blocks and random statistics, in eval mode; always the same one."""
    torch.manual_seed(0)
    return randomize(few_values(build(MICRONET)))


# of MICRONET's layers: bits that ONNX has types for, and others; one layer's are as wide as ever
ACTIVATIONS = {
    **{"layer1.0.conv1": "i4", "layer1.0.conv2": "u4", "layer2.0.conv1": "i2"},
    **{"layer2.0.conv2": "u2", "layer3.0.conv1": "i5", "layer3.0.conv2": "u6"},
    **{"layer3.0.shortcut.0": "i8", "linear": "u8"},
}


def with_activations(network: nn.Module) -> tuple[nn.Module, NetworkSpec]:
    """A MICRONET with these activations at random steps, and what describes it."""
    quantize_inputs(network, ACTIVATIONS)
    generator = torch.Generator().manual_seed(3)
    for quantizer in quantizers(network).values():
        quantizer.step.data = torch.rand((), generator=generator) * 0.3 + 0.1
    return network.eval(), replace(MICRONET, activations=ACTIVATIONS)


def filled(create) -> nn.Module:
    """A network of ones: quick to make, and no weight is zero."""
    try:
        with torch.device("meta"):
            network = create().to_empty(device="cpu").eval()
    except NotImplementedError:  # RegNets compute their widths with tensors
        network = create().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(1)
    return network


def unpack(archive: Path, target: Path, count: int, wanted: str) -> Path:
    """The first `count` members of an archive whose names contain `wanted`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and wanted in member.name:
                tar.extract(member, target, filter="data")
                count -= 1
            if not count:
                break
    return next(target.iterdir())


def call(main: Callable[[list[str]], int], capsys, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script, also where argparse leaves by SystemExit."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
