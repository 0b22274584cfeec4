"""From an image file to the pixels a network is trained and evaluated on: every crop there is."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]  # RGB image -> uint8 (3, size, size)


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
