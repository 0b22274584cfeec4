"""Where everything lies in the arena, planned by lifetimes."""

from dataclasses import dataclass

import numpy as np

from data.errors import UserError
from model_scoring.export.c_source.grids import ALIGNMENT, Grid, grids_of
from model_scoring.export.c_source.program.steps import (
    Buffer,
    Convolution,
    Linear,
    Pool,
    Program,
    Step,
    Value,
    listed_values,
)

BLOCK = 128  # pixels whose sums are in registers at a time
BLOCK_SUMS = 256  # floats that sums of bytes take for a block of a filter
SLACK = 512  # floats that a block of vectors may read beyond what it uses
MOST_ARENA = 2**30  # bytes


@dataclass
class Layout:
    """Offsets, in pixels (floats or bytes) from the aligned start of the arena, of the first pixel
    of every plane; those of the image count from its own start."""

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
        distances = _aligned(step.weight[0].size * step.groups)
        if step.parts[0].value.codes:
            return distances + step.chunks * (2 + BLOCK_SUMS)
        listed = listed_values(step.weight, step.groups) is not None
        return distances + listed * len(step.weight) * BLOCK
    if isinstance(step, Linear):
        return step.weight.shape[1]
    return step.x.size[1] if isinstance(step, Pool) else 0


def _lifetimes(program: Program) -> list[tuple[int, int]]:
    """First and last step of every buffer."""
    count = len(program.buffers)
    born, dies = [len(program.steps)] * count, [-1] * count
    for now, step in enumerate(program.steps):
        values = (*step.reads(), *step.writes())
        for buffer in {b for value in values for b in program.buffers_of(value)}:
            born[buffer], dies[buffer] = min(born[buffer], now), max(dies[buffer], now)
    for buffer in program.buffers_of(program.logits):
        dies[buffer] = len(program.steps)
    return list(zip(born, dies, strict=True))


def _in_place(program: Program, grids: dict[int, Grid], lives: list[tuple[int, int]]
              ) -> dict[int, int]:  # fmt: skip
    """Buffers that may take the place of another one, which nothing reads any more: a residual, by
    the sum with it. Sums of bytes write no pixel before its residual is read."""
    found: dict[int, int] = {}
    numbers = {buffer.first: b for b, buffer in enumerate(program.buffers)}
    for now, step in enumerate(program.steps):
        if not isinstance(step, Convolution) or step.add is None or not step.parts[0].value.codes:
            continue
        old, new = (numbers.get(int(v.planes.flat[0]), -1) for v in (step.add, step.out))
        first, last = program.buffers[old].first, program.buffers[new]
        whole = np.array_equal(step.add.planes.reshape(-1), first + np.arange(last.count))
        same = whole and program.buffers[old].count == last.count and last.codes is None
        if old >= 0 and same and grids[first] == grids[last.first] and lives[old][1] == now:
            found[new] = found.get(old, old)
    return found


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def _floats(buffer: Buffer, grid: Grid) -> int:
    """Of a buffer, whole cache lines."""
    pixels = -(-grid.before // grid.line) * grid.line + buffer.count * grid.starts[-1]
    return _aligned(-(-pixels * ALIGNMENT // grid.line))


def _places(order: list[int], start: int, sizes: list[int], lives: list[tuple[int, int]]
            ) -> dict[int, int]:  # fmt: skip
    """Each buffer as low as those placed before that live at the same time allow."""
    places: dict[int, int] = {}
    for b in order:
        taken = sorted((places[o], sizes[o]) for o in places
                       if lives[o][0] <= lives[b][1] and lives[b][0] <= lives[o][1])  # fmt: skip
        at = start
        for place, size in taken:
            if place - at >= sizes[b]:
                break
            at = max(at, place + size)
        places[b] = at
    return places


def plan(program: Program) -> Layout:
    """Places of all buffers: the largest first, or those that live longest, which of the two takes
    less. Raises UserError for an arena beyond 1 GiB."""
    grids, lives = grids_of(program), _lifetimes(program)
    shared = _in_place(program, grids, lives)
    for new, old in shared.items():
        lives[old], lives[new] = (lives[old][0], max(lives[old][1], lives[new][1])), (-1, -1)
    sizes = [_floats(b, grids[b.first]) for b in program.buffers]
    start = _aligned(max((scratch(step) for step in program.steps), default=0))
    used = [b for b, life in enumerate(lives) if life[1] >= 0]  # others are made in vain
    keys = (lambda b: -sizes[b], lambda b: lives[b][0] - lives[b][1])
    found = [_places(sorted(used, key=key), start, sizes, lives) for key in keys]
    places = min(found, key=lambda p: max((at + sizes[b] for b, at in p.items()), default=0))
    places |= {new: places[old] for new, old in shared.items()}
    floats = max((places[b] + sizes[b] for b in places), default=start) + SLACK
    if 4 * floats > MOST_ARENA:
        raise UserError(
            f"--c-source: images of this size need {4 * floats / 2**30:.1f} GiB of memory, at most "
            "1 GiB is possible: choose a smaller --image-size"
        )
    count = program.image.planes.size
    height, width = program.image.size
    offsets = np.zeros(count + sum(b.count for b in program.buffers), np.int64)
    offsets[:count] = np.arange(count) * height * width
    for b, place in places.items():
        buffer = program.buffers[b]
        grid = grids[buffer.first]
        first = (place // ALIGNMENT - (-grid.before // grid.line)) * grid.line
        planes = first + np.arange(buffer.count) * grid.starts[-1]
        offsets[buffer.first : buffer.first + buffer.count] = planes
    return Layout({0: Grid(height, width)} | grids, offsets, floats)
