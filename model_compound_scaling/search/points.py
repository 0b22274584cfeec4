"""The networks of a search: grids of multipliers, one point each, and what it costs.

Compound scaling (Tan and Le 2019, arXiv 1905.11946) multiplies depth, width and image size of a
baseline by d^phi, w^phi and r^phi. Operations grow with d w^2 r^2: with the number of layers, with
the channels twice, which are inputs and outputs, and with the pixels in both directions. With
d w^2 r^2 = 2 a network costs about 2^phi times the baseline.

Without torch until a cost is asked for: the command line reads its grid first."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

from data.errors import UserError
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec, table_row

Multipliers = tuple[float, float, float]  # d, w, r: of depth, width and image size


@dataclass(frozen=True)
class Point:
    """One network of the search: its folder's name, how to build it, what it was scaled by."""

    name: str
    spec: NetworkSpec = field(compare=False)  # it has no hash; the name says the same
    image_size: int
    multipliers: Multipliers = (1.0, 1.0, 1.0)
    phi: float = 1.0

    @property
    def predicted_cost(self) -> float:
        """Operations as a multiple of the baseline's: (d w^2 r^2)^phi."""
        depth, width, resolution = self.multipliers
        return (depth * width**2 * resolution**2) ** self.phi


def auto_grid(*, resolution: bool) -> list[Multipliers]:
    """All multipliers in steps of 0.1 with |d w^2 r^2 - 2| <= 0.1, 1 <= d < 2 and w, r >= 1.
    Without `resolution` r is 1, which leaves the thesis' six pairs."""
    tenths, sizes = range(10, 20), range(10, 20) if resolution else [10]
    return [
        (d / 10, w / 10, r / 10)
        for r, w, d in product(sizes, reversed(tenths), tenths)
        if abs(d * w**2 * r**2 - 2 * 10**5) <= 10**4  # whole numbers: no rounding
    ]


def parse_grid(values: list[float | str], *, resolution: bool) -> list[Multipliers]:
    """The grid of --grid: ["auto"], or pairs (d, w), or triples (d, w, r) with `resolution`."""
    if values == ["auto"]:
        return auto_grid(resolution=resolution)
    count, kind, what = 2, "pairs", "depth and width"
    if resolution:
        count, kind, what = 3, "triples", "depth, width and image size"
    if len(values) % count:
        raise UserError(f"--grid takes {kind} of {what}, not {len(values)} values")
    grid = [(*values[i : i + count], 1.0)[:3] for i in range(0, len(values), count)]
    if len(set(grid)) < len(grid):
        raise UserError("--grid names the same network twice")
    return grid


def scaled_point(
    model: str,
    multipliers: Multipliers,
    phi: float,
    *,
    num_classes: int,
    image_size: int,
    like: NetworkSpec | None = None,
) -> Point:
    """A MicroNet of depth d^phi and width w^phi for images of r^phi times `image_size` pixels; any
    other network has one size, whatever it is to be scaled by, and so has one that is to be `like`
    another but for its classes."""
    if like or table_row(model).family != "micronet":
        spec = replace(like or NetworkSpec(model, None), num_classes=num_classes)
        return Point(model.replace(":", "-"), spec, image_size)
    d, w, r = multipliers
    depth, width, resolution = (m**phi for m in multipliers)
    name = f"{model}_d{d:g}_w{w:g}{f'_r{r:g}' if r != 1 else ''}_phi{phi:g}"
    spec = NetworkSpec(model, num_classes, scaled_shape(model, depth=depth, width=width))
    return Point(name, spec, round(resolution * image_size), multipliers, phi)


def possible_points(
    point: Callable[[Multipliers, float], Point], grid: list[Multipliers], phis: list[float]
) -> list[Point]:
    """All points that a search may come to; those after the grid depend on which pair is best."""
    # a point of the grid may come again with phi 1: it is trained once
    first = [point(multipliers, 1.0) for multipliers in grid] if len(grid) > 1 else []
    later = [point(multipliers, phi) for phi in phis for multipliers in grid]
    return list(dict.fromkeys(first + later))


def cost(point: Point) -> tuple[int, int]:
    """(parameters, multiply-accumulates of convolutions and linear layers for one image), from
    shapes alone where the network allows it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model_compound_scaling.networks.building import build

    channels = table_row(point.spec.model).channels
    for device in ("meta", "cpu"):  # constructors that look at values need real tensors
        try:
            with torch.device(device), FlopCounterMode(display=False) as counter:
                network = build(point.spec).eval()
                network(torch.zeros(1, channels, point.image_size, point.image_size))
            parameters = sum(p.numel() for p in network.parameters())
            return parameters, counter.get_total_flops() // 2  # a MAC is two flops
        except (UserError, NotImplementedError, RuntimeError):
            if device == "cpu":
                raise
    raise AssertionError("unreachable")
