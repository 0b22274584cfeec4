"""Classes of single images, prepared as those the network was evaluated on."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from data.augmentation import normalize, to_float
from data.batches import evaluation_batch, to_channels
from data.datasets import Stats, find_dataset
from data.errors import DataError, UserError, printable
from data.image_files import SUFFIXES, Transform, eval_transform, images_under, read_image
from model_compound_scaling.networks.logits import FastLogits
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.inference import TOP


@dataclass(frozen=True)
class Preparation:
    """What is done to an image before the network sees it."""

    transform: Transform
    channels: int
    stats: Stats

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image -> float32 (channels, size, size)."""
        pixels = to_channels(self.transform(image)[None], self.channels)
        return normalize(to_float(pixels), *self.stats)[0]


def choose_transform(dataset: str | None, *, image_size: int, crop: str) -> Transform:
    """The evaluation transform of a data set; of folders of images if none is named."""
    cached = find_dataset(dataset or "ImageFolder", image_size).cached
    return eval_transform(image_size, "fit" if cached else crop)


def image_paths(path: Path) -> list[Path]:
    """The image itself, or those in a folder at any depth, sorted."""
    if os.path.isfile(path):  # unlike Path's, False as well where it cannot be found out
        return [path]
    if not os.path.isdir(path):
        raise DataError(f"--predict {path}: no such file or folder, or not to be reached")
    paths = sorted(map(Path, images_under(path)))
    if not paths:
        known = " ".join(sorted(SUFFIXES))
        raise DataError(f"--predict {path}: the folder holds no images ({known})")
    return paths


@torch.no_grad()
def _lines(
    network: nn.Module,
    paths: Sequence[Path],
    prepare: Preparation,
    *,
    device: torch.device,
    at_once: int,
    top: int,
    names: Sequence[str],
) -> Iterator[str]:
    forward = FastLogits(network.to(device).eval(), len(names))
    for start in range(0, len(paths), at_once):
        images, unreadable = [], None
        try:
            for path in paths[start : start + at_once]:
                images.append(prepare(read_image(str(path))))
        except DataError as error:  # those before it have been worth their time
            unreadable = error
        if images:
            shares = forward(torch.stack(images).to(device)).softmax(1).cpu()
            for path, probabilities in zip(paths[start:], shares, strict=False):
                values, classes = probabilities.topk(top)
                pairs = zip(classes.tolist(), values.tolist(), strict=True)
                yield printable(
                    f"{path}  {', '.join(f'{names[i]} {100 * v:.2f} %' for i, v in pairs)}"
                )
        if unreadable:
            raise unreadable


def predict(
    network: nn.Module,
    path: Path,
    *,
    spec: NetworkSpec,
    data: dict,
    top: int | None,
    device: torch.device,
) -> Iterator[str]:
    """One line per image: its path, and the `top` (by default up to five) most probable classes.
    `data`: what is known of the network's images, as checkpoints record it. Mistakes show at once,
    as UserError, or DataError if there are no images; an unreadable image when its turn comes."""
    if "mean" not in data:
        raise UserError(
            "--predict needs --normalize or --dataset: the checkpoint does not say how its images "
            "were normalised"
        )
    row = table_row(spec.model)
    transform = choose_transform(
        data.get("dataset"), image_size=data["image_size"], crop=row.eval_crop
    )
    prepare = Preparation(transform, row.channels, (tuple(data["mean"]), tuple(data["std"])))
    names = data.get("class_names", ())
    if len(names) != spec.num_classes:
        names = [str(i) for i in range(spec.num_classes)]
    paths = image_paths(path)
    if top is None:
        top = min(TOP, len(names))
    if top > len(names):
        raise UserError(f"--top {top} is more than the network's {len(names)} classes")
    at_once = evaluation_batch(data["image_size"], device)
    return _lines(network, paths, prepare, device=device, at_once=at_once, top=top, names=names)
