"""Where everything lies: borders of planes, and the arena, planned by lifetimes."""

from dataclasses import dataclass

import numpy as np

from data.errors import UserError
from model_scoring.export.c_source.steps import (
    Convolution,
    Linear,
    Pool,
    Program,
    Size,
    Step,
    Value,
)

ALIGNMENT = 16  # floats: a cache line
SLACK = 512  # floats that a block of vectors may read beyond what it uses
MOST_ARENA = 2**30  # bytes


@dataclass(frozen=True)
class Grid:
    """A plane with its border, see templates/planes.c."""

    height: int
    width: int
    rows: int
    columns: int

    @property
    def pitch(self) -> int:
        return self.width + self.columns

    @property
    def before(self) -> int:
        """Floats of the border before the first pixel."""
        return self.rows * self.pitch + self.columns

    @property
    def step(self) -> int:
        """Floats from plane to plane."""
        return (self.height + self.rows) * self.pitch

    @property
    def run(self) -> int:
        """Floats from the first pixel to the last."""
        return (self.height - 1) * self.pitch + self.width


def _grids(program: Program) -> dict[Size, Grid]:
    """One for all planes of a size, with the widest border that a convolution reads there."""
    borders = {size: (0, 0) for _, _, size in program.buffers}
    for step in program.steps:
        for part in step.parts if isinstance(step, Convolution) else ():
            size = part.value.size
            for tap in part.taps:
                ends = zip((tap.y, tap.x), step.out.size, size, strict=True)
                needed = (max(-a, n - 1 + a - (m - 1), 0) for a, n, m in ends)
                borders[size] = tuple(map(max, borders[size], needed))
    return {size: Grid(*size, *border) for size, border in borders.items()}


@dataclass
class Layout:
    """Offsets, in floats from the aligned start of the arena, of the first pixel of every plane;
    those of the image count from its own start."""

    grids: dict[Size, Grid]
    image: Grid
    offsets: np.ndarray  # int64 (planes,)
    floats: int  # of the arena
    image_planes: int

    def grid(self, value: Value) -> Grid:
        return self.image if self.outside(value) else self.grids[value.size]

    def outside(self, value: Value) -> bool:
        """Whether this is the image itself, not in the arena."""
        return int(value.planes.flat[0]) < self.image_planes

    def of(self, value: Value) -> np.ndarray:
        """Offsets of a value's planes, in their order."""
        return self.offsets[value.planes.reshape(-1)]


def scratch(step: Step) -> int:
    """Floats that a step needs for itself."""
    if isinstance(step, Convolution):
        channels = step.weight.shape[1] * step.groups
        return channels * step.weight.shape[2] if step.parts else 0
    if isinstance(step, Linear):
        return step.weight.shape[1]
    return step.x.size[1] if isinstance(step, Pool) else 0


def _lifetimes(program: Program) -> list[tuple[int, int]]:
    """First and last step of every buffer."""
    firsts = np.array([first for first, _, _ in program.buffers])
    born, dies = [len(program.steps)] * len(firsts), [-1] * len(firsts)

    def touched(value: Value) -> list[int]:
        planes = np.unique(value.planes)
        planes = planes[planes >= program.image.planes.size]
        return np.unique(np.searchsorted(firsts, planes, "right") - 1).tolist()

    for now, step in enumerate(program.steps):
        for buffer in {b for v in (*step.reads(), *step.writes()) for b in touched(v)}:
            born[buffer], dies[buffer] = min(born[buffer], now), max(dies[buffer], now)
    for buffer in touched(program.logits):
        dies[buffer] = len(program.steps)
    return list(zip(born, dies, strict=True))


def plan(program: Program) -> Layout:
    """Places of all buffers: the largest first, each as low as those alive at the same time allow.
    Raises UserError for an arena beyond 1 GiB."""
    grids, lives = _grids(program), _lifetimes(program)
    sizes = [grids[s].before + n * grids[s].step + grids[s].columns for _, n, s in program.buffers]
    sizes = [-(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT for size in sizes]
    start = max((scratch(step) for step in program.steps), default=0)
    start = -(-start // ALIGNMENT) * ALIGNMENT
    places: dict[int, int] = {}
    for b in sorted(range(len(sizes)), key=lambda b: -sizes[b]):
        if lives[b][1] < 0:
            continue  # made in vain
        taken = sorted((places[o], sizes[o]) for o in places
                       if lives[o][0] <= lives[b][1] and lives[b][0] <= lives[o][1])  # fmt: skip
        at = start
        for place, size in taken:
            if place - at >= sizes[b]:
                break
            at = max(at, place + size)
        places[b] = at
    floats = max((places[b] + sizes[b] for b in places), default=start) + SLACK
    if 4 * floats > MOST_ARENA:
        raise UserError(
            f"--c-source: images of this size need {4 * floats / 2**30:.1f} GiB of memory, at most "
            "1 GiB is possible: choose a smaller --image-size"
        )
    count = program.image.planes.size
    height, width = program.image.size
    offsets = np.zeros(count + sum(n for _, n, _ in program.buffers), np.int64)
    offsets[:count] = np.arange(count) * height * width
    for b, place in places.items():
        first, n, size = program.buffers[b]
        grid = grids[size]
        pixel = place + -(-grid.before // ALIGNMENT) * ALIGNMENT
        offsets[first : first + n] = pixel + np.arange(n) * grid.step
    image = Grid(height, width, 0, 0)
    return Layout(grids, image, offsets, floats, count)


def distances(step: Convolution, layout: Layout) -> np.ndarray:
    """(groups, inputs) offsets of what each weight of a group's filters reads, in the order of
    `find_inputs` in templates/convolution.c."""
    columns = []
    for part in step.parts:
        pitch = layout.grid(part.value).pitch
        taps = np.array([tap.y * pitch + tap.x for tap in part.taps])
        planes = layout.of(part.value).reshape(step.groups, -1)
        columns.append((planes[:, :, None] + taps).reshape(step.groups, -1))
    return np.concatenate(columns, 1)


def weights(step: Convolution) -> np.ndarray:
    """(filters, inputs) in the same order."""
    parts = [step.weight[:, :, [tap.index for tap in part.taps]] for part in step.parts]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
