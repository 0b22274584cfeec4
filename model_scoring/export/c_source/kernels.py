"""Steps as calls of the kernels in templates/: the structs that they take."""

from collections.abc import Callable

import numpy as np

from model_scoring.export.c_source.arena import Layout
from model_scoring.export.c_source.constants import Constants, number, struct
from model_scoring.export.c_source.lists import Entries, distances, lists_of, tiles, weights
from model_scoring.export.c_source.program.steps import (
    Activation,
    Codes,
    Convolution,
    Dequantize,
    Flatten,
    Linear,
    Map,
    Mean,
    Pool,
    Sample,
    Step,
    Value,
    listed_values,
)

NONE = "{0, 0, 0}"


class Kernels:
    """Writes steps; `used` are the templates that they need."""

    def __init__(self, layout: Layout, constants: Constants, image_planes: int) -> None:
        self.layout, self.constants, self.image_planes = layout, constants, image_planes
        self.text: list[str] = []
        self.calls: list[str] = []
        self.used: dict[str, None] = {}

    def write(self, step: Step) -> None:
        """A struct and a call."""
        kind, function, arguments, fields = WRITERS[type(step)](self, step)
        name = f"step_{len(self.calls)}"
        self.used[kind] = None
        self.text.append(f"static const {kind} {name} = {struct(fields)};\n")
        self.calls.append(f"{function}(&{name}, {arguments});")

    def planes(self, value: Value | None) -> str:
        return NONE if value is None else self.constants.planes(self.layout.of(value))

    def floats(self, values: np.ndarray) -> str:
        return self.constants.array(values, "f")


def _grid(kernels: Kernels, value: Value) -> str:
    grid = kernels.layout.grid(value)
    ends = np.array(grid.starts)
    copies = [*grid.starts[:-1], *(dx for dx, _ in grid.copies), *(ends[1:] - ends[:-1] - grid.run)]
    numbers = (grid.height, grid.width, grid.pitch, grid.before, grid.zero, len(grid.copies))
    named = kernels.constants.array(np.array(copies), "i")
    return f"{{{', '.join(map(str, numbers))}, {named}}}"


def _codes(codes: Codes | None) -> str:
    """Of a `codes`: 2^23, from which on floats are whole numbers, and the offset are in it."""
    if codes is None:
        return "{0, 0, 0, 0}"
    ends = (2**23 + codes.offset + end for end in (0, codes.low, codes.high))
    return f"{{{', '.join(map(number, (1 / codes.step, *ends)))}}}"


def _activation(activation: Activation) -> str:
    return f"{{{activation.kind}, {number(activation.low)}, {number(activation.high)}}}"


def _lists(kernels: Kernels, rows: np.ndarray, values: np.ndarray, entries: Entries) -> dict:
    """Fields of lists for rows (filters, inputs) of weights."""
    counts, listed = lists_of(rows, values, entries)
    return {
        "values": len(values),
        "count": kernels.constants.array(counts, "H"),
        "list": kernels.constants.array(listed, "H"),
    }


def _part(kernels: Kernels, step: Convolution) -> str:
    rows = []
    for part in step.parts:
        grid = kernels.layout.grid(part.value)
        taps = kernels.constants.array(np.array([grid.distance(t) for t in part.taps]), "i")
        rows.append(f"    {{{kernels.planes(part.value)}, {len(part.taps)}, {taps}}}")
    text, name = ",\n".join(rows), f"parts_{len(kernels.calls)}"
    kernels.text.append(f"static const part {name}[{len(rows)}] = {{\n{text}}};\n")
    return name


def _runs(kernels: Kernels, step: Convolution) -> str:
    out, grid = kernels.layout.grid(step.out), kernels.layout.grid(step.parts[0].value)
    if grid.pitch == out.pitch:
        return f"{{1, {out.run}, 0, 0}}"
    return f"{{{out.height}, {out.width}, {grid.pitch}, {out.pitch}}}"


def _common(kernels: Kernels, step: Convolution, scale: np.ndarray | None) -> dict[str, object]:
    """Fields of a `convolution`."""
    fields = {
        "parts": _part(kernels, step),
        "part_count": len(step.parts),
        "channels": step.weight.shape[1],
        "groups": step.groups,
        "filters": len(step.weight),
        "inputs": step.weight.shape[1] * sum(len(part.taps) for part in step.parts),
        "out": kernels.planes(step.out),
        "add": kernels.planes(step.add),
        "scale": "0" if scale is None else kernels.floats(scale),
        "bias": kernels.floats(step.shift),
        "activation": _activation(step.activation),
        "grid": _grid(kernels, step.out),
        "runs": _runs(kernels, step),
        "adds": int(step.add is not None),
        "codes": _codes(step.out.codes),
        "stored": int(step.stored),
    }
    return fields | _also(kernels, step)


def _also(kernels: Kernels, step: Convolution) -> dict[str, object]:
    rows = []
    for also in step.also:
        rows.append(struct({
            "out": kernels.planes(also.out),
            "scale": kernels.floats(also.scale),
            "bias": kernels.floats(also.shift),
            "activation": _activation(also.activation),
            "codes": _codes(also.out.codes),
            "grid": _grid(kernels, also.out),
        }))  # fmt: skip
    if not rows:
        return {}
    name = f"also_{len(kernels.calls)}"
    kernels.text.append(f"static const also {name}[{len(rows)}] = {{{', '.join(rows)}}};\n")
    return {"also": name, "also_count": len(rows)}


Written = tuple[str, str, str, dict[str, object]]  # type, function, further arguments, fields


def _convolution(kernels: Kernels, step: Convolution) -> Written:
    rows, values = weights(step), listed_values(step.weight, step.groups)
    where = distances(step, kernels.layout)
    if values is None:
        weight = (rows * step.scale[:, None]).reshape(step.groups, -1, rows.shape[1])
        whole = weight.shape[1] // 4 * 4
        fours = weight[:, :whole].reshape(step.groups, -1, 4, rows.shape[1]).swapaxes(2, 3)
        left = weight[:, whole:].reshape(step.groups, -1)
        packed = np.concatenate([fours.reshape(step.groups, -1), left], 1)
        fields = {"c": _common(kernels, step, None), "weight": kernels.floats(packed)}
        return "dense", "convolve_dense", "a, scratch", fields
    base = int(where.min())
    wide = int(where.max()) - base >= 2**16
    if wide:
        where, base = np.arange(where.size).reshape(where.shape), 0
    where = np.repeat(where, len(rows) // step.groups, 0) - base
    if step.parts[0].value.codes:
        return _integers(kernels, step, Entries(where, np.zeros(where.shape[1], int)), base, wide)
    entries = Entries(where, tiles(step, kernels.layout))
    scale = step.scale * (values[-1] if len(values) else 0.0)
    fields = {
        "c": _common(kernels, step, scale),
        "tiles": int(entries.tile[-1]) + 1,
        "base": base,
        "wide": int(wide),
        "ratio": kernels.floats(values[:-1] / values[1:]),
        **_lists(kernels, rows, values, entries),
    }
    return "lists", "convolve_lists", "a, scratch", fields


def _integers(kernels: Kernels, step: Convolution, entries: Entries, base: int, wide: bool
              ) -> Written:  # fmt: skip
    codes, values = step.parts[0].value.codes, listed_values(step.weight, step.groups)
    fields = {
        "c": _common(kernels, step, step.scale * codes.step),
        "base": base,
        "wide": int(wide),
        "most": codes.most_terms,
        "offset": codes.offset,
        "chunks": step.chunks,
        "value": kernels.floats(values),
        **_lists(kernels, weights(step), values, entries),
    }
    return "integers", "convolve_integers", "a, scratch", fields


def _linear(kernels: Kernels, step: Linear) -> Written:
    fields = {
        "in": kernels.planes(step.x),
        "out": kernels.planes(step.out),
        "add": kernels.planes(step.add),
        "inputs": step.weight.shape[1],
        "outputs": len(step.weight),
        "adds": int(step.add is not None),
        "bias": kernels.floats(step.shift),
        "activation": _activation(step.activation),
        "zero": step.x.codes.offset if step.x.codes else -1,
    }
    values, factor = listed_values(step.weight), step.x.codes.step if step.x.codes else 1.0
    if values is None:
        fields["weight"] = kernels.floats(step.weight * (factor * step.scale)[:, None])
    else:
        fields["scale"] = kernels.floats(factor * step.scale)
        inputs = np.arange(step.weight.shape[1])
        entries = Entries(inputs, np.zeros_like(inputs))
        fields["value"] = kernels.floats(values)
        fields |= _lists(kernels, step.weight, values, entries)
    return "linear", "multiply_vector", "a, scratch", fields


def _map(kernels: Kernels, step: Map) -> Written:
    grid = kernels.layout.grid(step.out)
    fields = {
        "in": kernels.planes(step.x),
        "other": kernels.planes(step.add),
        "out": kernels.planes(step.out),
        "count": step.out.planes.size,
        "length": grid.run,
        "operation": step.operation if step.add else "ALONE",
        "broadcast": int(step.add is not None and step.add.size != step.out.size),
        "scale": "0" if (step.scale == 1).all() else kernels.floats(step.scale),
        "shift": "0" if (step.shift == 0).all() else kernels.floats(step.shift),
        "activation": _activation(step.activation),
        "codes": _codes(step.out.codes),
        "grid": _grid(kernels, step.out),
    }
    return "map", "map_planes", "a", fields


def _both(kernels: Kernels, step: Step) -> dict[str, object]:
    return {
        "in": kernels.planes(step.x),
        "out": kernels.planes(step.out),
        "in_grid": _grid(kernels, step.x),
        "out_grid": _grid(kernels, step.out),
        "count": step.out.planes.size,
    }


def _pool(kernels: Kernels, step: Pool) -> Written:
    windows = (f"{{{w.kernel}, {w.stride}, {w.padding}, {w.dilation}}}" for w in step.windows)
    fields = _both(kernels, step) | {
        "maximum": int(step.maximum),
        "adaptive": int(step.adaptive),
        "with_padding": int(step.with_padding),
        "divisor": number(step.divisor),
        **dict(zip(("vertical", "horizontal"), windows, strict=True)),
    }
    return "pool", "pool_planes", "a, scratch", fields


def _sample(kernels: Kernels, step: Sample) -> Written:
    source = "image" if int(step.x.planes.flat[0]) < kernels.image_planes else "a"
    fields = _both(kernels, step) | {
        "step_y": step.step[0],
        "step_x": step.step[1],
        "from_y": step.start[0],
        "from_x": step.start[1],
        "outside": number(step.outside) if np.isfinite(step.outside) else "-INFINITY",
    }
    return "sample", "sample_planes", f"{source}, a", fields


def _dequantize(kernels: Kernels, step: Dequantize) -> Written:
    fields = _both(kernels, step) | {"step": number(step.x.codes.step)}
    return "dequantize", "dequantize_planes", "a", fields


def _mean(kernels: Kernels, step: Mean) -> Written:
    grid = kernels.layout.grid(step.x)
    fields = {
        "in": kernels.planes(step.x),
        "out": kernels.planes(step.out),
        "count": step.out.planes.size,
        "length": grid.run,
        "pixels": number(grid.height * grid.width),
    }
    return "mean", "average_planes", "a", fields


def _flatten(kernels: Kernels, step: Flatten) -> Written:
    fields = {
        "in": kernels.planes(step.x),
        "out": int(kernels.layout.of(step.out)[0]),
        "count": step.x.planes.size,
        "grid": _grid(kernels, step.x),
    }
    return "flatten", "flatten_planes", "a", fields


WRITERS: dict[type[Step], Callable[..., Written]] = {
    Convolution: _convolution,
    Linear: _linear,
    Map: _map,
    Pool: _pool,
    Sample: _sample,
    Mean: _mean,
    Flatten: _flatten,
    Dequantize: _dequantize,
}
