"""Compiling what was written with the machine's own compiler, and comparing it with PyTorch."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.errors import UserError, printable
from model_compound_scaling.networks.logits import logits_of
from model_scoring.export.c_source.source import CSource

FLAGS = ("-std=gnu11", "-O3", "-march=native")
IMAGES = 4
MOST_DEVIATION = 1e-3  # relative to the largest logit; rounding: 1e-6


class NoCompiler(UserError):
    """There is none, by the name that CC says, or `cc`."""


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise NoCompiler(f"there is no C compiler {printable(command[0])!r}: install one or set CC")
    return command


def build(source: CSource, folder: Path, *flags: str, output: str) -> Path:
    """Compile into a folder. Raises NoCompiler, or UserError with the first line that the compiler
    says."""
    command, path, out = _compiler(), folder / f"{source.name}.c", folder / output
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

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of images (n, channels, height, width), one after the other."""
        images = np.ascontiguousarray(images, np.float32)
        assert images.shape[1:] == self.source.shape, images.shape
        logits = np.empty((len(images), self.source.classes), np.float32)
        arena = ctypes.create_string_buffer(self.source.arena_bytes)
        function = self.library[f"{self.source.name}_run"]
        for image, row in zip(images, logits, strict=True):
            code = function(ctypes.c_void_p(image.ctypes.data),
                            ctypes.c_void_p(row.ctypes.data), arena)  # fmt: skip
            assert code == 0
        return logits


def compiled(source: CSource, folder: Path, *flags: str) -> Compiled:
    """Compile as a shared library in a folder, which may go afterwards; without flags as the
    comment in the source says. Raises as `build` does."""
    flags = (*(flags or FLAGS), "-shared", "-fPIC")
    path = build(source, folder, *flags, output=f"{source.name}.so")
    return Compiled(source, ctypes.CDLL(str(path)), path.stat().st_size)


@torch.no_grad()
def largest_deviation(network: nn.Module, library: Compiled, images: int, seed: int = 0) -> float:
    """Of logits from PyTorch's on random images, relative to the largest."""
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(images):
        image = torch.randn(1, *library.source.shape, generator=generator)
        expected = logits_of(network(image), 1, library.source.classes).numpy()
        difference = np.abs(library.run(image.numpy()) - expected).max()
        worst = max(worst, float(difference / max(np.abs(expected).max(), 1e-30)))
    return worst


def checked(network: nn.Module, source: CSource) -> float:
    """Compile and compare. Raises NoCompiler where there is none, UserError if logits differ."""
    with tempfile.TemporaryDirectory() as folder:
        deviation = largest_deviation(network, compiled(source, Path(folder)), IMAGES)
    if not deviation <= MOST_DEVIATION:
        raise UserError(
            f"--c-source: logits would differ from PyTorch's by {deviation:.1e} of the largest: "
            "the network does not compute the same for every image"
        )
    return deviation
