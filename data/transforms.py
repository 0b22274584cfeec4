"""From an image file to the pixels a network is trained and evaluated on."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Image.Image], Tensor]


def train_transform(size: int) -> Transform:
    """The usual ImageNet augmentation; PIL image -> uint8 (3, size, size)."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def eval_transform(size: int, crop: str) -> Transform:
    """The centre of an image for evaluation; PIL image -> uint8 (3, size, size).

    crop "standard": 224 of 256 pixels, or in proportion, bilinear; "full" (EfficientNet): the whole
    shorter side, bicubic; "fit": the whole shorter side, bilinear.
    """
    resize = {
        "standard": v2.Resize(round(size * 256 / 224)),
        "full": v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
        "fit": v2.Resize(size),
    }[crop]
    return v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
