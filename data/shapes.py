"""Shapes: a procedural set of 32x32 RGB images in ten classes, always the same.

Each image shows one figure of random size, place, rotation and colour on a gradient with clutter,
partly covered now and then, under noise; some are small or faint enough that nobody gets them all.
Pixels are computed with + - * / sqrt and comparisons only, which round alike on all machines."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SIZE = 32
SAMPLES = {"train": 10_000, "val": 2_000}
SEEDS = {"train": 20_200_401, "val": 20_200_402}  # not the run's seed: the set is a constant
Array = np.ndarray
Uniform = Callable[..., Array]


def _box(u: Array, v: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _radius(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _checkers(u: Array, v: Array) -> Array:
    """Five fields of a 3 x 3 board: inside where the two directions' stripes agree."""
    a, b = np.abs(u) - 0.3, np.abs(v) - 0.3
    agree = np.minimum(np.maximum(a, b), np.maximum(-a, -b))
    return np.maximum(_box(u, v, 0.9, 0.9), agree)


# Distance (negative inside) to each figure, in units of its size; u, v: coordinates along its axes.
FIGURES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: _radius(u, v) - 0.9,
    "ring": lambda u, v: np.abs(_radius(u, v) - 0.72) - 0.2,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "frame": lambda u, v: np.abs(_box(u, v, 0.64, 0.64)) - 0.18,
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.5,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.28, 0.95), _box(u, v, 0.95, 0.28)),
    "bars": lambda u, v: np.maximum(_box(u, v, 0.9, 0.9), 0.19 - np.abs(np.abs(u) - 0.4)),
    "checkers": _checkers,
    "half-disc": lambda u, v: np.maximum(_radius(u, v - 0.4) - 0.95, v - 0.4),
    "ell": lambda u, v: np.minimum(_box(u + 0.5, v, 0.25, 0.85), _box(u, v - 0.6, 0.75, 0.25)),
}


def _axes(uniform: Uniform, radius: Array, margin: float, turn: float) -> tuple[Array, Array]:
    """Turned coordinates (n, 32, 32), in pixels, around a centre margin·radius from the border."""
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5
    centre = margin * radius + (SIZE - 2 * margin * radius) * uniform(0, 1, 2, len(radius))
    angle = uniform(-turn, turn, len(radius)).astype(np.float64)
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    x = pixel - centre[0][:, None, None]
    y = pixel[:, None] - centre[1][:, None, None]
    return x * cos + y * sin, y * cos - x * sin


def _paint(images: Array, distance: Array, colour: Array) -> None:
    """Fill where distance (n, 32, 32), in pixels, is negative; edges are antialiased."""
    cover = np.clip(0.5 - distance, 0, 1)[:, None]
    images += cover * (colour[:, :, None, None] - images)


def _paint_bars(images: Array, uniform: Uniform, shown: float) -> None:
    """One bar of random colour and size per image, in the fraction `shown` of them."""
    n = len(images)
    u, v = _axes(uniform, np.zeros(n, np.float32), 0, np.pi)
    # a bar of negative width covers nothing, and every image draws as many random numbers
    width = np.where(uniform(0, 1, n) < shown, uniform(0.7, 2.2, n), -9).astype(np.float32)
    height = uniform(2, 14, n)
    _paint(images, _box(u, v, width[:, None, None], height[:, None, None]), uniform(0, 1, n, 3))


def _draw(figure: Callable[[Array, Array], Array], n: int, rng: np.random.Generator) -> Array:
    """n images of one figure: uint8 (n, 3, 32, 32)."""

    def uniform(low: float, high: float, *shape: int) -> Array:
        return np.float32(low) + np.float32(high - low) * rng.random(shape, dtype=np.float32)

    ground, slope = uniform(0.05, 0.55, n, 3), uniform(-0.2, 0.2, 2, n, 3, 1, 1)
    ramp = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    images = ground[:, :, None, None] + slope[0] * ramp + slope[1] * ramp[:, None]
    for _ in range(2):
        _paint_bars(images, uniform, 0.4)
    radius = uniform(5.5, 12, n)
    u, v = _axes(uniform, radius, 0.9, 0.5)
    scale = radius[:, None, None]
    colour = ground + uniform(0.1, 1, n, 3) * uniform(0.12, 0.9, n, 1)
    _paint(images, figure(u / scale, v / scale) * scale, colour)
    _paint_bars(images, uniform, 0.4)
    images += uniform(0, 0.36, n, 1, 1, 1) * uniform(-0.5, 0.5, *images.shape)
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


@functools.cache
def make_shapes(split: str) -> tuple[Tensor, Tensor]:
    """The images (N, 3, 32, 32) uint8 and labels (N,) int64 of "train" or "val", in mixed order."""
    rng = np.random.default_rng(SEEDS[split])
    per_class = SAMPLES[split] // len(FIGURES)
    images = np.concatenate([_draw(figure, per_class, rng) for figure in FIGURES.values()])
    # drawn class by class; whoever takes the first so many must not get one class alone
    mixed = rng.permutation(len(images))
    return torch.from_numpy(images[mixed]), torch.from_numpy(mixed // per_class)
