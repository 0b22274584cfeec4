"""Planes with their borders: where a pixel lies from the first one."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from model_scoring.export.c_source.program.steps import (
    Convolution,
    Mean,
    Part,
    Program,
    Size,
    Tap,
)

ALIGNMENT = 16  # floats: a cache line
SECOND_CACHE = 2**16  # floats of it that a value's copies may take
MOST_WIDTH = 128  # of planes with copies, see templates/planes.c


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


def grids_of(program: Program) -> dict[int, Grid]:
    """One for each buffer, by its first plane. Planes of one size have one pitch, with the widest
    border that a convolution reads there."""
    buffers = program.buffers
    borders = {b.size: (0, 0) for b in buffers}
    readers: dict[Size, list[tuple[Convolution, Part]]] = {size: [] for size in borders}
    copies = [{(0, 0): None} for _ in buffers]
    lines = [ALIGNMENT if b.codes is None else 4 * ALIGNMENT for b in buffers]
    means = [step.x for step in program.steps if isinstance(step, Mean)]
    cleared = {b for value in means for b in program.buffers_of(value)}
    for step, part in _parts(program):
        size = part.value.size
        readers[size].append((step, part))
        read = program.buffers_of(part.value)
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
