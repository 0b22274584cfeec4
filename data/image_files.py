"""Image files: which there are in a tree of class folders, and how one becomes RGB pixels."""

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.errors import DataError
from data.transforms import eval_transform

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
CHUNK = 128  # files per task of a thread; one each would cost more than decoding a small one
EXPECTED = "--data-path: expected images in {}/<class>/*.jpg, but {}"


@dataclass(frozen=True)
class Tree:
    """The files of one split, sorted by class and name. `paths` is one array of bytes: a million
    Path objects would be copied into every worker process as soon as their reference counts are
    touched."""

    paths: np.ndarray
    labels: Tensor
    class_names: list[str]


class BadImages:
    """Unreadable files: up to `limit` of them are left out and, if `shown`, named on stderr."""

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.names, self.shown = limit, set(), True

    def add(self, errors: Iterable[DataError]) -> None:
        """Count and name the new ones; DataError for one more than the limit."""
        for error in errors:
            if str(error) in self.names:
                continue
            if len(self.names) == self.limit:
                hint = "--skip-bad-images N leaves out up to N such files"
                hint = f"more than --skip-bad-images {self.limit}" if self.limit else hint
                raise DataError(f"{error} ({hint})")
            self.names.add(str(error))
            if self.shown:
                count = f"{len(self.names)} of at most {self.limit}"
                print(f"warning: {error}; left out ({count})", file=sys.stderr)


def class_folders(root: Path | None, split: str) -> list[Path]:
    """The folders root/split/<class>, sorted. DataError if there are none, or no root is named."""
    if root is None:
        raise DataError("--data-path DIR is needed: expected images in DIR/train/<class>/*.jpg")
    folder = root / split
    if not folder.is_dir():
        raise DataError(EXPECTED.format(folder, f"there is no folder {folder}"))
    classes = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not classes:
        raise DataError(EXPECTED.format(folder, f"{folder} has no class folders"))
    return classes


def list_tree(root: Path | None, split: str) -> Tree:
    """The images in root/split/<class>/, at any depth. DataError if there are none."""
    classes = class_folders(root, split)
    files = [_images_under(folder) for folder in classes]
    if empty := [folder for folder, found in zip(classes, files, strict=True) if not found]:
        hold_none = f"{len(empty)} class folders hold none, first {empty[0]}"
        raise DataError(EXPECTED.format(root / split, hold_none))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(f) for f in files]))
    paths = np.array([os.fsencode(path) for found in files for path in found])
    return Tree(paths, labels, [folder.name for folder in classes])


def _images_under(folder: Path) -> list[str]:
    """Sorted by path: an index must mean the same image on every machine."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )


def read_image(path: str | bytes) -> Image.Image:
    """Any image file as 8-bit RGB. DataError, naming the file, if it cannot be decoded."""
    path = os.fsdecode(path)
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            if "transparency" in image.info:  # a palette with alpha has to go through RGBA
                image = image.convert("RGBA")
            return image.convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read image {path}: {reason}") from error


def decode_all(paths: np.ndarray, size: int, bad: BadImages) -> tuple[Tensor, Tensor]:
    """Read all files, in threads, into one uint8 tensor (n, 3, size, size); which those n are
    (bool, one for each path): not those that cannot be read, as far as `bad` allows."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    readable = torch.ones(len(paths), dtype=torch.bool)
    transform = eval_transform(size, "fit")

    def decode(chunk: range) -> list[DataError]:
        errors = []
        for i in chunk:
            try:
                images[i] = transform(read_image(paths[i]))
            except DataError as error:
                errors.append(error)
                readable[i] = False
        return errors

    chunks = [range(len(paths))[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc="reading images", unit="img", disable=None) as progress,
    ):
        for chunk, errors in zip(chunks, pool.map(decode, chunks), strict=True):
            bad.add(errors)
            progress.update(len(chunk))
    return images if readable.all() else images[readable], readable
