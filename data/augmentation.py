"""Augmentation of a whole batch at once, each image with parameters of its own.

The operations take their random parameters as tensors and are pure, so each can be compared with
torchvision's on the same parameters. All results are independent of the other images in the batch,
to the bit: nothing is fused or summed in an order that the shape of the batch could change."""

from functools import cache
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from data.datasets import LUMA, Recipe, Stat
from data.stateless_random import uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STRENGTH = torch.tensor([0.3, 0.3, 0.3, 0.075])[:, None]  # factor 1 ± that; hue: ± turns
ORDERS = torch.tensor(list(permutations(range(4))))  # (24, 4): which operation comes at each step
CUTOUT = 16
DRAWS = 10  # flip, crop y and x, four jitter factors, jitter order, cutout y and x


@cache
def _on(device: torch.device, values: tuple | Tensor) -> Tensor:
    """A constant, copied to the device once: a copy in each batch would make it wait."""
    return torch.as_tensor(values).to(device)


def luma(images: Tensor) -> Tensor:
    """Brightness as the eye sees it: float (B, 3 or 1, H, W) -> (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (B, C, H, W) for which `flipped` (B,) bool is true, left to right."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def pad_crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad (B, C, H, W) by `pad` zeros on each side, cut H x W at (top, left) (B,) in 0..2·pad."""
    height, width = images.shape[2:]
    windows = F.pad(images, [pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def blend(images: Tensor, factor: Tensor, to_grey: Tensor, to_mean: Tensor) -> Tensor:
    """clamp(factor·image + (1 - factor)·base); float (B, C, H, W) in [0, 1], the rest (B,). The
    base is the grey image where `to_grey` is 1 (saturation), its mean where `to_mean` is 1
    (contrast), else black (brightness). Factor 1 leaves an image exactly as it is."""
    grey, other = luma(images), 1 - factor
    of_image, of_grey, of_mean = (
        values[:, None, None, None] for values in (factor, other * to_grey, other * to_mean)
    )
    # the mean is summed as integers: a float sum may be split differently in another batch
    units = (grey * 2**20).round_().int().sum(dim=(1, 2, 3), keepdim=True)
    base = units.float() / (2**20 * grey[0].numel()) * of_mean
    return torch.addcmul(torch.addcmul(base, grey, of_grey), images, of_image).clamp_(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of float RGB (B, 3, H, W) by `turns` (B,), 1 being the whole circle. RGB -> HSV
    -> RGB in one go: largest and smallest channel stay, only the hue (0..6) moves."""
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    scale = torch.where(chroma == 0, 1, chroma).reciprocal_()
    from_green, from_blue = (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)
    hue = torch.where(high == green, from_green, from_blue)
    hue = torch.where(high == red, (green - blue).mul_(scale), hue).add_(6 * turns[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    ramps = ((hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    return torch.stack([ramp.clamp_(0, 1).mul_(chroma).add_(low) for ramp in ramps], dim=1)


def jitter_parameters(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (4, B) and order (B, 4) from draws (5, B) in [0, 1), distributed as ColorJitter's."""
    factors = (2 * draws[:4] - 1) * _on(draws.device, STRENGTH)
    factors[:HUE] += 1
    return factors, _on(draws.device, ORDERS)[(draws[4] * len(ORDERS)).long()]


def turn_some(images: Tensor, turns: Tensor, chosen: Tensor) -> Tensor:
    """`shift_hue` where `chosen` (B,) is true; images may be overwritten. A GPU turns all and drops
    what is not wanted: to choose images, it would have to wait for their number."""
    if images.is_cuda:
        return torch.where(chosen[:, None, None, None], shift_hue(images, turns), images)
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        images[rows] = shift_hue(images[rows], turns[rows])
    return images


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue with `factors` (4, B); float images, overwritten.
    `order` (B, 4): the operation at each step. Three of the four are one blend with different
    coefficients: a step blends all images at once, then turns the hue of those whose turn it is."""
    for operation in order.unbind(1):
        is_hue = operation == HUE
        factor = torch.where(is_hue, 1, factors.gather(0, operation[None])[0])
        to_grey, to_mean = ((operation == o).float() for o in (SATURATION, CONTRAST))
        images = blend(images, factor, to_grey, to_mean)
        if images.shape[1] == 3:
            images = turn_some(images, factors[HUE], is_hue)
    return images


def normalize(images: Tensor, mean: Stat, std: Stat) -> Tensor:
    """(x - mean) / std per channel, in place; float (B, C, H, W) in [0, 1]."""
    mean, std = (_on(images.device, tuple(stat))[:, None, None] for stat in (mean, std))
    return images.sub_(mean).div_(std)


def cutout(images: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Zero the size x size square around pixel (row, column) (B,), clipped at borders, in place."""

    def inside(pixels: int, centre: Tensor) -> Tensor:
        offset = torch.arange(pixels, device=images.device) - centre[:, None] + size // 2
        return (offset >= 0) & (offset < size)

    rows, columns = inside(images.shape[2], row), inside(images.shape[3], column)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return images.float().div_(255)


def augment(
    images: Tensor,
    *,
    recipe: Recipe,
    mean: Stat,
    std: Stat,
    seed: int,
    epoch: int | Tensor,
    index: Tensor,
) -> Tensor:
    """Augment and normalise uint8 images (B, C, H, W); `index` (B,): which samples they are; all on
    one device, `epoch` (), too, if it is a tensor. Returns float32 (B, C, H, W). Each image depends
    on itself and (seed, epoch, its index) only."""
    size, draws = images.shape[-1], uniform(seed, epoch, index, DRAWS)
    flip_draw, top, left, _, _, _, _, _, row, column = draws
    if recipe.flip:
        images = flip(images, flip_draw < 0.5)
    if recipe.pad:
        places = 2 * recipe.pad + 1
        images = pad_crop(images, (top * places).long(), (left * places).long(), recipe.pad)
    images = to_float(images)
    if recipe.jitter:
        images = jitter(images, *jitter_parameters(draws[3:8]))
    images = normalize(images, mean, std)
    if not recipe.cutout:
        return images
    return cutout(images, (row * size).long(), (column * size).long(), min(CUTOUT, size // 2))
