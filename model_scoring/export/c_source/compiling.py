"""Compiling what was written with the machine's own compiler, and comparing it with PyTorch."""

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.errors import UserError, printable
from model_compound_scaling.networks.logits import logits_of
from model_scoring.export.c_source.names import compiler
from model_scoring.export.c_source.source import CSource
from model_scoring.export.rounding import noise_of_rounding

FLAGS = ("-std=gnu11", "-O3", "-march=native")
IMAGES = 4
MOST_DEVIATION = 1e-3  # relative to the largest logit; rounding: 1e-6


def build(source: CSource, folder: Path, *flags: str, output: str) -> Path:
    """Compile into a folder. Raises NoCompiler, or UserError with the first line that the compiler
    says."""
    command, path, out = compiler(), folder / f"{source.name}.c", folder / output
    path.write_text(source.source)
    given = [*command, *flags, str(path), "-o", str(out), "-lm"]
    done = subprocess.run(given, capture_output=True, text=True, errors="replace", cwd=folder)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        lines.sort(key=lambda line: "error" not in line)  # stable: warnings and places come later
        said = lines[0] if lines else f"exit {done.returncode}"
        raise UserError(f"the C compiler {printable(command[0])} fails: {printable(said)[:300]}")
    return out


@dataclass(frozen=True)
class Compiled:
    """A network as a shared library of this process."""

    source: CSource
    library: ctypes.CDLL
    library_bytes: int  # code, weights, and what a library takes beside them

    def caller(self, image: np.ndarray) -> Callable[[], np.ndarray]:
        """Logits (classes,) of what the image (channels, height, width) holds at each call; their
        memory is always the same."""
        assert (image.shape, image.dtype) == (self.source.shape, np.float32), image.shape
        image, logits = np.ascontiguousarray(image), np.empty(self.source.classes, np.float32)
        arena = ctypes.create_string_buffer(self.source.arena_bytes)
        function = self.library[f"{self.source.name}_run"]
        where = [ctypes.c_void_p(array.ctypes.data) for array in (image, logits)]

        def call() -> np.ndarray:
            assert function(*where, arena) == 0
            return logits

        call.kept = image, logits, arena  # whose addresses C gets
        return call

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of images (n, channels, height, width), one after the other."""
        image = np.empty(self.source.shape, np.float32)
        call, rows = self.caller(image), []
        for image[...] in images:
            rows.append(call().copy())
        return np.array(rows)


def compiled(source: CSource, folder: Path, *flags: str) -> Compiled:
    """Compile as a shared library in a folder, which may go afterwards; without flags as the
    comment in the source says. Raises as `build` does."""
    flags = (*(flags or FLAGS), "-shared", "-fPIC")
    path = build(source, folder, *flags, output=f"{source.name}.so")
    return Compiled(source, ctypes.CDLL(str(path)), path.stat().st_size)


def _images(library: Compiled, count: int, seed: int = 0) -> torch.Tensor:
    """Random ones, (count, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *library.source.shape, generator=generator)


@torch.no_grad()
def largest_deviation(network: nn.Module, library: Compiled, images: int, seed: int = 0) -> float:
    """Of logits from PyTorch's on random images, relative to the largest."""
    worst = 0.0
    for image in _images(library, images, seed).split(1):
        expected = logits_of(network(image), 1, library.source.classes).numpy()
        difference = np.abs(library.run(image.numpy()) - expected).max()
        worst = max(worst, float(difference / max(np.abs(expected).max(), 1e-30)))
    return worst


def checked(network: nn.Module, library: Compiled) -> float:
    """The largest deviation on a few images. Raises UserError if that is too much."""
    deviation = largest_deviation(network, library, IMAGES)
    if deviation <= MOST_DEVIATION:
        return deviation
    noise = noise_of_rounding(network, _images(library, IMAGES), library.source.classes)
    if not deviation <= noise:
        raise UserError(
            f"C: logits would differ from PyTorch's by {deviation:.1e} of the largest: "
            "the network does not compute the same for every image"
        )
    return deviation
