"""Lists of a layer's inputs by the values of their weights, see templates/lists.c."""

from dataclasses import dataclass

import numpy as np

from model_scoring.export.c_source.arena import BLOCK, Layout
from model_scoring.export.c_source.program.steps import Convolution

FIRST_CACHE = 11000  # floats of it that a tile of channels may take
LEAST_IN_TILE = 16  # weights of a filter that are worth another one


@dataclass(frozen=True)
class Entries:
    """What the lists of a layer say of its inputs: where they are, and in which tile."""

    where: np.ndarray  # (filters, inputs), or one that broadcasts to it
    tile: np.ndarray  # (inputs,)


def lists_of(
    rows: np.ndarray, values: np.ndarray, entries: Entries
) -> tuple[np.ndarray, np.ndarray]:
    """For rows (filters, inputs) of weights: how many inputs have each of the values, (tiles *
    filters * values,), and where they are, one list after the other."""
    filters, inputs = np.nonzero(np.isin(rows, values))
    number = np.argmax(rows[filters, inputs][:, None] == values, 1) if len(values) else filters
    tile, tiles = entries.tile[inputs], int(entries.tile[-1]) + 1
    order = np.lexsort((inputs, number, filters, tile))
    cells = (tile * len(rows) + filters) * len(values) + number
    counts = np.bincount(cells, minlength=tiles * len(rows) * len(values))
    return counts, np.broadcast_to(entries.where, rows.shape)[filters, inputs][order]


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
