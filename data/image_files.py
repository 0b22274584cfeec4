"""Image files: which there are in a tree of class folders, how one becomes RGB pixels, and the crop
of them that a network is trained or evaluated on."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torch import Tensor

from data.errors import DataError

Transform = Callable[[Image.Image], Tensor]  # RGB image -> uint8 (3, size, size)
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
EXPECTED = "--data-path: expected images in {}/<class>/*.jpg, but {}"


@dataclass(frozen=True)
class Tree:
    """The files of one split, sorted by class and name. `paths` is one array of bytes: reference
    counts of a million objects would make every worker process copy them (copy on write)."""

    paths: np.ndarray
    labels: Tensor
    class_names: list[str]

    def take(self, which: Tensor) -> "Tree":
        """Those files only; `which`: bool (N,)."""
        return replace(self, paths=self.paths[which.numpy()], labels=self.labels[which])


def class_folders(root: Path | None, split: str) -> list[Path]:
    """The folders root/split/<class>, sorted. DataError if there are none, or no root is named."""
    if root is None:
        raise DataError(f"--data-path DIR is needed: expected images in DIR/{split}/<class>/*.jpg")
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
    waiting = [(folder, [Path(folder).resolve()])]  # beside each, where all on the way really are
    while waiting:
        folder, places = waiting.pop()
        for entry in _entries(folder):
            if _is_folder(entry):
                place = Path(entry).resolve() if entry.is_symlink() else places[-1] / entry.name
                leads_back = any(inner.is_relative_to(place) for inner in places)
                if not leads_back:
                    waiting.append((entry.path, [*places, place]))
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


WHITE_IS_ZERO, SIGNED = 0, 2  # values of TIFF tags


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as one of 8, by the range that its file declares, never by
    its values; others as they are. ValueError if the file declares none."""
    tags = getattr(image, "tag_v2", {})
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")  # which hold 16 bits
    if wide or SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise ValueError("integers of 32 bits or with a sign have no agreed range: save as 16 bits")
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # nor if one is not a number
            raise ValueError("floating-point values must be from 0 to 1")
        grey = np.rint(255 * values)
    else:
        grey = values >> (tags.get(BITSPERSAMPLE, (16,))[0] - 8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
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


def train_transform(size: int) -> Transform:
    """The usual ImageNet augmentation: random resized crop and horizontal flip."""
    from torchvision.transforms import v2  # takes 1.5 s, which the other crops need not wait for

    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def eval_transform(size: int, crop: str) -> Transform:
    """The centre crop of an image, the same for evaluation, images held in memory and --predict.
    crop "standard": 224 of 256 pixels, or in proportion, bilinear; "full" (EfficientNet): the whole
    shorter side, bicubic; "fit" (small images): the whole shorter side, bilinear."""
    shorter, resample = {
        "standard": (round(size * 256 / 224), Image.Resampling.BILINEAR),
        "full": (size, Image.Resampling.BICUBIC),
        "fit": (size, Image.Resampling.BILINEAR),
    }[crop]
    return partial(_centre, shorter=shorter, size=size, resample=resample)


def _centre(image: Image.Image, *, shorter: int, size: int, resample: int) -> Tensor:
    """Shorter side to `shorter` pixels, then the central square: torchvision's Resize, CenterCrop
    and PILToTensor, to the bit."""
    short = min(image.size)
    width, height = (int(shorter * side / short) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), resample)
    if image.size != (size, size):
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
