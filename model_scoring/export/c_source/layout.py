"""Where everything lies: borders of planes, and the arena, planned by lifetimes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import UserError
from model_scoring.export.c_source.steps import (
    Convolution,
    Linear,
    Part,
    Pool,
    Program,
    Size,
    Step,
    Tap,
    Value,
)

ALIGNMENT = 16  # floats: a cache line
BLOCK = 128  # pixels whose sums are in registers at a time
SECOND_CACHE = 2**16  # floats of it that a value's copies may take
FIRST_CACHE = 11000  # floats of it that a tile of channels may take
LEAST_IN_TILE = 16  # weights of a filter that are worth another one
SLACK = 512  # floats that a block of vectors may read beyond what it uses
MOST_WIDTH = 128  # of planes with copies, see templates/planes.c
MOST_ARENA = 2**30  # bytes


@dataclass(frozen=True)
class Grid:
    """A plane with its border, see templates/planes.c. Without columns of zeros there are copies
    that are shifted by dx pixels instead, so that taps read whole cache lines."""

    height: int
    width: int
    rows: int = 0
    columns: int = 0
    copies: tuple[tuple[int, int], ...] = ((0, 0),)  # (dx, place in a cache line)

    @property
    def pitch(self) -> int:
        return self.width + self.columns

    @property
    def before(self) -> int:
        """Floats of zeros before the first pixel."""
        return self.rows * self.pitch + self.columns

    @property
    def run(self) -> int:
        """Floats from the first pixel to the last."""
        return (self.height - 1) * self.pitch + self.width

    @cached_property
    def starts(self) -> list[int]:
        """Where copies lie, from the first one's first pixel on; at last, the next plane's."""
        starts = [0]
        for _, place in (*self.copies[1:], (0, 0)):
            least = starts[-1] + self.run + self.before
            single = self.height == self.width == 1 and not self.before
            starts.append(least if single else least + (-least - place) % ALIGNMENT)
        starts[-1] += ALIGNMENT * (
            starts[-1] % 128 == 0
        )  # whose cache lines would evict each other
        return starts

    def copy(self, tap: Tap) -> tuple[int, int]:
        """Which copy a tap reads."""
        copy = _copy(tap, self.width)
        return copy if copy in self.copies else (0, 0)

    def distance(self, tap: Tap) -> int:
        """Of what a tap reads from the output's pixel."""
        copy = self.copy(tap)
        return self.starts[self.copies.index(copy)] + tap.y * self.pitch + tap.x - copy[0]


def _copy(tap: Tap, width: int) -> tuple[int, int]:
    """A shift, and the place in a cache line where the tap's row would start; that only matters for
    rows of half a line."""
    return tap.x, tap.y * width % ALIGNMENT if 2 * width == ALIGNMENT else 0


def _parts(program: Program) -> Iterator[tuple[Convolution, Part]]:
    for step in program.steps:
        for part in step.parts if isinstance(step, Convolution) else ():
            yield step, part


def _prefers_copies(size: Size, readers: list[tuple[Convolution, Part]]) -> bool:
    """Copies pay where many filters read them, rows are whole or half cache lines, and all copies
    stay in the second cache. They have zeros for the output's columns only where a row ends."""
    shifts = {_copy(tap, size[1]) for _, part in readers for tap in part.taps}
    other = any(step.groups > 1 or step.out.size[1] > size[1] for step, _ in readers)
    fits = 2 * size[1] % ALIGNMENT == 0 and size[1] <= MOST_WIDTH
    largest = max((part.value.planes.size for _, part in readers), default=0) * size[0] * size[1]
    small = largest * len(shifts) <= SECOND_CACHE
    return fits and len({dx for dx, _ in shifts}) <= 3 and small and not other


def _grids(program: Program) -> dict[int, Grid]:
    """One for each buffer, by its first plane. Planes of one size have one pitch, with the widest
    border that a convolution reads there."""
    firsts = np.array([first for first, _, _ in program.buffers])
    borders = {size: (0, 0) for _, _, size in program.buffers}
    readers = {size: [] for size in borders}
    copies = {int(first): {(0, 0): None} for first in firsts}
    for step, part in _parts(program):
        size = part.value.size
        readers[size].append((step, part))
        buffers = set(firsts[np.searchsorted(firsts, part.value.planes, "right") - 1].flat)
        for tap in part.taps:
            ends = zip((tap.y, tap.x), step.out.size, size, strict=True)
            needed = (max(-a, n - 1 + a - (m - 1), 0) for a, n, m in ends)
            borders[size] = tuple(map(max, borders[size], needed))
            for buffer in buffers:
                copies[int(buffer)][_copy(tap, size[1])] = None
    grids = {}
    for first, _, size in program.buffers:
        rows, columns = borders[size]
        if _prefers_copies(size, readers[size]):
            grids[first] = Grid(*size, rows, 0, tuple(copies[first]))
        else:
            grids[first] = Grid(*size, rows, columns)
    return grids


@dataclass
class Layout:
    """Offsets, in floats from the aligned start of the arena, of the first pixel of every plane;
    those of the image count from its own start."""

    grids: dict[int, Grid]  # by a buffer's first plane; the image's is 0
    offsets: np.ndarray  # int64 (planes,)
    floats: int  # of the arena

    def grid(self, value: Value) -> Grid:
        """Of a value, all of whose planes have the same pitch."""
        plane = int(value.planes.flat[0])
        return self.grids[max(first for first in self.grids if first <= plane)]

    def of(self, value: Value) -> np.ndarray:
        """Offsets of a value's planes, in their order."""
        return self.offsets[value.planes.reshape(-1)]


def scratch(step: Step) -> int:
    """Floats that a step needs for itself."""
    if isinstance(step, Convolution):  # distances of all inputs, and sums that wait
        inputs = step.weight[0].size * step.groups
        return _aligned(inputs) + len(step.weight) * BLOCK
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


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def plan(program: Program) -> Layout:
    """Places of all buffers: the largest first, each as low as those alive at the same time allow.
    Raises UserError for an arena beyond 1 GiB."""
    grids, lives = _grids(program), _lifetimes(program)
    before = {first: _aligned(grid.before) for first, grid in grids.items()}
    sizes = [before[f] + n * grids[f].starts[-1] for f, n, _ in program.buffers]
    start = max((scratch(step) for step in program.steps), default=0)
    start = _aligned(start)
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
        first, n, _ = program.buffers[b]
        planes = np.arange(n) * grids[first].starts[-1]
        offsets[first : first + n] = place + before[first] + planes
    return Layout({0: Grid(height, width)} | grids, offsets, floats)


def distances(step: Convolution, layout: Layout) -> np.ndarray:
    """(groups, inputs) offsets of what each weight of a group's filters reads, in the order of
    `find_inputs` in templates/convolution.c."""
    columns = []
    for part in step.parts:
        taps = np.array([layout.grid(part.value).distance(tap) for tap in part.taps])
        planes = layout.of(part.value).reshape(step.groups, -1)
        columns.append((planes[:, :, None] + taps).reshape(step.groups, -1))
    return np.concatenate(columns, 1)


def weights(step: Convolution) -> np.ndarray:
    """(filters, inputs) in the same order."""
    parts = [step.weight[:, :, [tap.index for tap in part.taps]] for part in step.parts]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def tiles(step: Convolution, layout: Layout) -> np.ndarray:
    """(inputs,) which tile of channels each belongs to: a tile's pixels, of a block of the output,
    stay in the first cache."""
    channels, columns, floats = step.weight.shape[1], [], 0
    for part in step.parts:
        grid = layout.grid(part.value)
        rows = {grid.copy(tap): [] for tap in part.taps}
        for tap in part.taps:
            rows[grid.copy(tap)].append(tap.y * grid.pitch)
        floats += sum(min(BLOCK + max(r) - min(r), grid.run) for r in rows.values())
        columns.append(np.repeat(np.arange(channels), len(part.taps)))
    count = -(-channels * floats // FIRST_CACHE) if step.groups == 1 else 1
    nonzeros = np.count_nonzero(step.weight) / len(step.weight)
    count = max(1, min(count, int(nonzeros // LEAST_IN_TILE)))
    return np.concatenate(columns) * count // channels
