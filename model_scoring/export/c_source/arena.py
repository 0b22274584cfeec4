"""Where everything lies: borders of planes, and the arena, planned by lifetimes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import UserError
from model_scoring.export.c_source.program.steps import (
    Buffer,
    Convolution,
    Linear,
    Mean,
    Part,
    Pool,
    Program,
    Size,
    Step,
    Tap,
    Value,
    listed_values,
)

ALIGNMENT = 16  # floats: a cache line
BLOCK = 128  # pixels whose sums are in registers at a time
BLOCK_SUMS = 256  # floats that sums of bytes take for a block of a filter
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
    zero: int = -1  # the byte that stands for 0; -1: pixels are floats
    cleared: bool = True  # whether anything relies on zeros around the plane
    copies: tuple[tuple[int, int], ...] = ((0, 0),)  # (dx, place in a cache line)

    @property
    def line(self) -> int:
        """Pixels of a cache line."""
        return ALIGNMENT if self.zero < 0 else 4 * ALIGNMENT

    @property
    def pitch(self) -> int:
        return self.width + self.columns

    @property
    def before(self) -> int:
        """Zeros before the first pixel."""
        return (self.rows * self.pitch + self.columns) * self.cleared

    @property
    def run(self) -> int:
        """Pixels from the first to the last."""
        return (self.height - 1) * self.pitch + self.width

    @cached_property
    def starts(self) -> list[int]:
        """Where copies lie, from the first one's first pixel on; at last, the next plane's."""
        starts = [0]
        for _, place in (*self.copies[1:], (0, 0)):
            least = starts[-1] + self.run + self.before
            single = self.height == self.width == 1 and not self.before
            starts.append(least if single else least + (-least - place) % self.line)
        # planes at such distances would evict each other's cache lines
        starts[-1] += self.line * (starts[-1] % (8 * self.line) == 0)
        return starts

    def copy(self, tap: Tap) -> tuple[int, int]:
        """Which copy a tap reads."""
        copy = _copy(tap, self.width, self.line)
        return copy if copy in self.copies else (0, 0)

    def distance(self, tap: Tap) -> int:
        """Of what a tap reads from the output's pixel."""
        copy = self.copy(tap)
        return self.starts[self.copies.index(copy)] + tap.y * self.pitch + tap.x - copy[0]


def _copy(tap: Tap, width: int, line: int) -> tuple[int, int]:
    """A shift, and the place in a cache line where the tap's row would start; that only matters for
    rows of half a line, of floats."""
    half = 2 * width == line == ALIGNMENT
    return tap.x, tap.y * width % line if half else 0


def _parts(program: Program) -> Iterator[tuple[Convolution, Part]]:
    for step in program.steps:
        for part in step.parts if isinstance(step, Convolution) else ():
            yield step, part


def _prefers_copies(size: Size, columns: int, readers: list[tuple[Convolution, Part]]) -> bool:
    """Copies have zeros for the output's columns only where a row ends. Of floats, they pay where
    many filters read them, rows are whole or half cache lines, and all copies stay in the second
    cache; of bytes, where columns of zeros would fill many lines."""
    if any(step.groups > 1 or step.out.size[1] > size[1] for step, _ in readers):
        return False
    taps = [tap for _, part in readers for tap in part.taps]
    if len({tap.x for tap in taps}) > 3 or size[1] > MOST_WIDTH:
        return False
    if any(part.value.codes for _, part in readers):
        lines, wider = (
            -(-size[0] * width // (4 * ALIGNMENT)) for width in (size[1], size[1] + columns)
        )
        return wider >= 1.2 * lines
    shifts = {_copy(tap, size[1], ALIGNMENT) for tap in taps}
    largest = max((part.value.planes.size for _, part in readers), default=0) * size[0] * size[1]
    return 2 * size[1] % ALIGNMENT == 0 and largest * len(shifts) <= SECOND_CACHE


def _grids(program: Program) -> dict[int, Grid]:
    """One for each buffer, by its first plane. Planes of one size have one pitch, with the widest
    border that a convolution reads there."""
    buffers = program.buffers
    firsts = np.array([b.first for b in buffers])
    borders = {b.size: (0, 0) for b in buffers}
    readers: dict[Size, list[tuple[Convolution, Part]]] = {size: [] for size in borders}
    copies = [{(0, 0): None} for _ in buffers]
    lines = [ALIGNMENT if b.codes is None else 4 * ALIGNMENT for b in buffers]
    means = [step.x for step in program.steps if isinstance(step, Mean)]
    cleared = {b for value in means for b in _touched(value, firsts)}
    for step, part in _parts(program):
        size = part.value.size
        readers[size].append((step, part))
        read = _touched(part.value, firsts)
        cleared.update(read)
        joined = {id(copies[b]): copies[b] for b in read}  # a tap has one distance to all of them
        shared = dict.fromkeys(shift for one in joined.values() for shift in one)
        copies = [shared if id(one) in joined else one for one in copies]
        for tap in part.taps:
            ends = zip((tap.y, tap.x), step.out.size, size, strict=True)
            needed = (max(-a, n - 1 + a - (m - 1), 0) for a, n, m in ends)
            borders[size] = tuple(map(max, borders[size], needed))
            for b in read:
                copies[b][_copy(tap, size[1], lines[b])] = None
    grids = {}
    for b, buffer in enumerate(buffers):
        rows, columns = borders[buffer.size]
        shifted = _prefers_copies(buffer.size, columns, readers[buffer.size])
        grids[buffer.first] = Grid(
            *buffer.size, rows, 0 if shifted else columns,
            buffer.codes.offset if buffer.codes else -1, b in cleared,
            tuple(copies[b]) if shifted else ((0, 0),),
        )  # fmt: skip
    return grids


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


def _touched(value: Value, firsts: np.ndarray) -> list[int]:
    """Numbers of the buffers that a value lies in; the image is in none."""
    planes = np.unique(value.planes)
    planes = planes[planes >= firsts[0]]
    return np.unique(np.searchsorted(firsts, planes, "right") - 1).tolist()


def _lifetimes(program: Program) -> list[tuple[int, int]]:
    """First and last step of every buffer."""
    firsts = np.array([buffer.first for buffer in program.buffers])
    born, dies = [len(program.steps)] * len(firsts), [-1] * len(firsts)
    for now, step in enumerate(program.steps):
        values = (*step.reads(), *step.writes())
        for buffer in {b for value in values for b in _touched(value, firsts)}:
            born[buffer], dies[buffer] = min(born[buffer], now), max(dies[buffer], now)
    for buffer in _touched(program.logits, firsts):
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
    grids, lives = _grids(program), _lifetimes(program)
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
