"""Image files: which there are in a tree of class folders, and how one becomes RGB pixels."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.errors import DataError, printable
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


def usable_cores() -> int:
    """Processor cores that this process may use: of a job or container, not of the machine."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


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
                print(f"warning: {printable(error)}; left out ({count})", file=sys.stderr)


def class_folders(root: Path | None, split: str) -> list[Path]:
    """The folders root/split/<class>, sorted. DataError if there are none, or no root is named."""
    if root is None:
        raise DataError("--data-path DIR is needed: expected images in DIR/train/<class>/*.jpg")
    folder = root / split
    if not os.path.isdir(folder):  # unlike Path's, False as well where it cannot be found out
        raise DataError(EXPECTED.format(folder, f"there is no folder {folder}"))
    entries = (entry for entry in _entries(folder) if not entry.name.startswith("."))
    classes = sorted(folder / entry.name for entry in entries if _is_folder(entry))
    if not classes:
        raise DataError(EXPECTED.format(folder, f"{folder} has no class folders"))
    return classes


def list_tree(root: Path | None, split: str) -> Tree:
    """The images in root/split/<class>/, at any depth. DataError if there are none."""
    classes = class_folders(root, split)
    files = [images_under(folder) for folder in classes]
    if empty := [folder for folder, found in zip(classes, files, strict=True) if not found]:
        hold_none = f"{len(empty)} class folders hold none, first {empty[0]}"
        raise DataError(EXPECTED.format(root / split, hold_none))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(f) for f in files]))
    paths = np.array([os.fsencode(path) for found in files for path in found])
    return Tree(paths, labels, [folder.name for folder in classes])


def images_under(folder: str | os.PathLike) -> list[str]:
    """The image files below a folder, at any depth; links are followed, as torchvision does, but
    for those that lead back to a folder they are in. Sorted by path: an index must mean the same
    image on every machine. DataError for a folder that cannot be read."""
    found, folder = [], os.fspath(folder)
    # beside each folder, where it really is, after the places that links on the way to it were in
    waiting = [(folder, (os.path.realpath(folder),))]
    while waiting:
        folder, places = waiting.pop()
        for entry in _entries(folder):
            if _is_folder(entry):
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if any(os.path.commonpath([target, place]) == target for place in places):
                        continue
                    waiting.append((entry.path, (*places, target)))
                else:
                    below = os.path.join(places[-1], entry.name)
                    waiting.append((entry.path, (*places[:-1], below)))
            elif _is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
                found.append(entry.path)
    return sorted(found)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _entries(folder: str | os.PathLike) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or links to one. A link that leads nowhere is an error, lest a folder
    of images be missing without a word; of an image, its reader will say so."""
    try:
        # entry.is_dir() alone takes a link that leads nowhere for a file
        return stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() else entry.is_dir()
    except OSError as error:
        if _is_image(entry.name) or entry.name.startswith("."):
            return False
        raise DataError(f"cannot follow the link {entry.path}: {error.strerror}") from error


# TIFF tags
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as one of 8, by the range that its file declares, never by
    its values; others as they are. ValueError if the file declares none."""
    tags = getattr(image, "tag_v2", {})
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")  # which hold 16 bits
    if wide or SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("integers of 32 bits or with a sign have no agreed range: save as 16 bits")
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # nor if one is not a number
            raise ValueError("floating-point values must be from 0 to 1")
        grey = np.rint(255 * values)
    else:
        grey = values >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
        grey = 255 - grey
    return Image.fromarray(grey.astype(np.uint8))


def read_image(path: str | bytes) -> Image.Image:
    """Any image file as 8-bit RGB, as it is stored: without turning it as EXIF data may say.
    DataError, naming the file, if it cannot be decoded or does not say what its values mean."""
    path = os.fsdecode(path)
    try:
        with Image.open(path) as image:
            image = _to_eight_bits(image)
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
        ThreadPoolExecutor(min(8, usable_cores())) as pool,
        tqdm(total=len(paths), desc="reading images", unit="img", disable=None) as progress,
    ):
        for chunk, errors in zip(chunks, pool.map(decode, chunks), strict=True):
            bad.add(errors)
            progress.update(len(chunk))
    return images if readable.all() else images[readable], readable
