"""Layers of few values, packed: codes through an entropy coder, values (the codebook) as they are.

A layer that the context model codes begins with the counts of its negative and positive values (4
bits each; all bits inverted where older programs found its weights independent) and two densities
(int8); any other one with the count of its values (varint) and the share of each code (uint8, as
static_coder.py says). The values follow (float32, the negative ones first, both from small to
large), then the coder's bytes.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.few_values import few_values
from model_scoring.packed_file import context_model, static_coder
from model_scoring.packed_file.context_model import Geometry
from model_scoring.packed_file.static_coder import StaticLayer, shares
from model_scoring.packed_file.structure import entropy_bits, structure_bits
from model_scoring.packed_file.varint import read_varint, varint

Array = np.ndarray
MOST_VALUES = 256
NIBBLE = 15  # values that the context model takes at most, 0 not counted
MOST_TAPS = 1024
TOGETHER = 8192  # lanes coded side by side: more no longer fit the processor's cache
WORTH = 0.005  # of a layer's entropy: what the context model has to save
CHEAP = 8192  # weights that are better coded twice than judged
WEIGHTS_PER_BYTE = 40_000  # the coder's probabilities end at 1/4096: no layer gets smaller


@dataclass(frozen=True)
class Quantized:
    """A layer's weights as integer codes of any shape, and the values of the negative and positive
    codes. Code 0 is +0.0; -0.0 is a negative value, so that every bit comes back."""

    codes: Array  # int8, int16 if 8 bits do not hold them
    negative: Array  # float32, of -n ... -1
    positive: Array  # of 1 ... p

    @property
    def levels(self) -> int:
        """Largest magnitude of a code, at least 1."""
        return max(1, len(self.negative), len(self.positive))

    @property
    def values(self) -> int:
        return len(self.negative) + len(self.positive)

    @cached_property
    def indices(self) -> Array:
        """Flat codes, counted from 0."""
        return self.codes.reshape(-1).astype(np.int16) + np.int16(len(self.negative))

    @cached_property
    def counts(self) -> Array:
        """How often each code occurs."""
        return np.bincount(self.indices, minlength=self.values + 1)

    def weights(self) -> Array:
        table = np.concatenate([self.negative, np.zeros(1, np.float32), self.positive])
        return table.take(self.indices).reshape(self.codes.shape)


class Coded(NamedTuple):
    """The bytes of a layer, and which coder's they are."""

    content: bytes
    static: bool


def quantized(weights: Array) -> Quantized | None:
    """The codes of a float32 layer of few values; None of any other layer, or of a vector."""
    if weights.ndim < 2 or weights.dtype != np.float32:
        return None
    found = few_values(torch.from_numpy(weights), MOST_VALUES)
    if found is None or found.isnan().any():
        return None
    values, negative_zero = found.numpy(), np.float32(-0.0)
    bits = np.ascontiguousarray(weights).reshape(-1).view(np.int32)  # they tell -0.0 from 0.0
    negative, positive = values[values < 0], values[values > 0]
    if (bits == negative_zero.view(np.int32)).any():
        negative = np.append(negative, negative_zero)
    table = np.concatenate([negative, np.zeros(1, np.float32), positive]).view(np.int32)
    short = max(len(negative), len(positive)) <= np.iinfo(np.int8).max
    codes = np.zeros(len(bits), np.int8 if short else np.int16)
    for code, value in enumerate(table, start=-len(negative)):  # faster than a search in the table
        codes += (bits == value) * codes.dtype.type(code)
    return Quantized(codes.reshape(weights.shape), negative, positive)


@dataclass(frozen=True)
class Layout:
    """Between a layer's shape and that of the coder, (channels, taps, lanes)."""

    shape: tuple[int, ...]
    swapped: bool  # inputs are the lanes
    folded: bool  # neither filters nor inputs: rows of so many lanes, the last one filled up
    geometry: Geometry

    def to_coder(self, codes: Array) -> Array:
        if self.folded:
            lanes = self.geometry.lanes
            return np.pad(codes.reshape(-1), (0, -codes.size % lanes)).reshape(-1, 1, lanes)
        codes = codes.reshape(*self.shape[:2], -1)
        return codes.transpose((0, 2, 1) if self.swapped else (1, 2, 0))

    def from_coder(self, codes: Array) -> Array:
        if self.folded:
            return codes.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)
        return codes.transpose((0, 2, 1) if self.swapped else (2, 0, 1)).reshape(self.shape)


def layout(shape: tuple[int, ...], levels: int) -> Layout:
    """How a layer is coded: the more lanes, the fewer steps."""
    filters, inputs, *kernel = shape
    taps = math.prod(kernel)
    lanes, channels = max(filters, inputs), min(filters, inputs)
    if taps > MOST_TAPS or taps * channels > max(64 * lanes, 4096):
        total = math.prod(shape)
        lanes = min(total, MOST_TAPS)
        return Layout(shape, False, True, Geometry(lanes, -(-total // lanes), 1, 1, levels))
    geometry = Geometry(lanes, channels, taps, kernel[-1] if kernel else 1, levels)
    return Layout(shape, inputs > filters, False, geometry)


def _groups(layouts: Mapping[str, Layout]) -> Iterator[tuple[Geometry, list[str]]]:
    """Names of layers to be coded together."""
    groups: dict[Geometry, list[str]] = defaultdict(list)
    for name, place in layouts.items():
        groups[place.geometry].append(name)
    for geometry, names in groups.items():
        size = max(1, TOGETHER // geometry.lanes)
        yield from ((geometry, names[i : i + size]) for i in range(0, len(names), size))


def _values(layer: Quantized) -> bytes:
    return np.concatenate([layer.negative, layer.positive]).astype("<f4").tobytes()


def _encode_adaptive(layers: Mapping[str, Quantized]) -> dict[str, Coded]:
    """Layers through the context model."""
    layouts = {name: layout(layer.codes.shape, layer.levels) for name, layer in layers.items()}
    packed = {}
    for geometry, names in _groups(layouts):
        codes = np.stack([layouts[n].to_coder(layers[n].codes) for n in names], axis=2)
        priors = np.array([(*context_model.densities(layers[n].codes), 1) for n in names], np.int8)
        parts = context_model.encode(codes, geometry, priors)
        for name, prior, part in zip(names, priors, parts, strict=True):
            layer = layers[name]
            head = bytes([len(layer.negative) << 4 | len(layer.positive)]) + prior[:2].tobytes()
            packed[name] = Coded(head + _values(layer) + part, static=False)
    return packed


def _encode_static(layers: Mapping[str, Quantized]) -> dict[str, Coded]:
    """Layers whose weights are independent, or of many values."""
    tables = [StaticLayer(q.codes.size, shares(q.counts)) for q in layers.values()]
    parts = static_coder.encode(tables, [layer.indices for layer in layers.values()])
    packed = {}
    for (name, layer), table, part in zip(layers.items(), tables, parts, strict=True):
        head = varint(layer.values) + table.shares.tobytes()
        packed[name] = Coded(head + _values(layer) + part, static=True)
    return packed


def pack_layers(layers: Mapping[str, Quantized]) -> dict[str, Coded]:
    """The bytes of each layer."""
    entropy = {name: entropy_bits(layer.counts) for name, layer in layers.items()}

    def learnable(name: str) -> bool:
        """Whether the context model, which takes long, is worth its time."""
        layer = layers[name]
        return layer.values <= NIBBLE and (
            layer.codes.size < CHEAP or structure_bits(layer.codes) > WORTH * entropy[name]
        )

    learned = {name: layer for name, layer in layers.items() if learnable(name)}
    packed = _encode_adaptive(learned)
    doubtful = {name: layer for name, layer in layers.items()
                if name not in packed or 8 * len(packed[name].content) > entropy[name]}  # fmt: skip
    for name, coded in _encode_static(doubtful).items():
        packed[name] = min(packed.get(name, coded), coded, key=lambda c: len(c.content))
    return {name: packed[name] for name in layers}


def _split(content: bytes, start: int, count: int) -> tuple[Array, bytes]:
    """So many values, which begin at `start`, and the coder's bytes."""
    end = start + 4 * count
    if len(content) < end:
        raise CheckpointError(f"{len(content)} bytes cannot hold {count} values")
    return np.frombuffer(content, "<f4", count, offset=start).astype(np.float32), content[end:]


def _too_few(content: bytes, shape: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{len(content)} bytes cannot hold {math.prod(shape):,} weights")


def _decode_adaptive(
    packed: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    """Layers that the context model coded."""
    layouts, priors, values, parts, layers = {}, {}, {}, {}, {}
    for name, content in packed.items():
        if len(content) < 3 or math.prod(shapes[name]) > WEIGHTS_PER_BYTE * len(content):
            raise _too_few(content, shapes[name])
        low, high = content[0] >> 4, content[0] & 15
        informed = low + high <= NIBBLE
        low, high = (low, high) if informed else (NIBBLE - low, NIBBLE - high)
        priors[name] = (*np.frombuffer(content, np.int8, 2, offset=1), informed)
        found, parts[name] = _split(content, 3, low + high)
        values[name] = found[:low], found[low:]
        layouts[name] = layout(shapes[name], max(1, low, high))
    for geometry, names in _groups(layouts):
        known = np.array([priors[name] for name in names], np.int8)
        codes = context_model.decode([parts[name] for name in names], geometry, known)
        for i, name in enumerate(names):
            low, high = values[name]
            own = layouts[name].from_coder(codes[:, :, i])
            if own.size and not -len(low) <= own.min() <= own.max() <= len(high):
                raise CheckpointError("a layer has codes without values")
            layers[name] = Quantized(own, low, high)
    return layers


def _decode_static(
    packed: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    """Layers that the context model did not code."""
    tables, values, parts = {}, {}, []
    for name, content in packed.items():
        count, at = read_varint(content, 0)
        if count > MOST_VALUES:
            raise CheckpointError(f"a layer of {count:,} values")
        values[name], part = _split(content, at + count + 1, count)
        found = np.frombuffer(content, np.uint8, count + 1, offset=at)
        tables[name] = StaticLayer(math.prod(shapes[name]), found)
        if len(part) < 4 * tables[name].lanes:
            raise _too_few(content, shapes[name])
        parts.append(part)
    layers = {}
    for name, indices in zip(packed, static_coder.decode([*tables.values()], parts), strict=True):
        low = np.count_nonzero(np.signbit(values[name]))
        codes = indices.astype(np.int16) - np.int16(low)
        layers[name] = Quantized(codes.reshape(shapes[name]), *np.split(values[name], [low]))
    return layers


def unpack_layers(
    packed: Mapping[str, Coded], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    """The layers again, or some of them. Raises CheckpointError if the bytes are damaged."""
    adaptive = {name: coded.content for name, coded in packed.items() if not coded.static}
    static = {name: coded.content for name, coded in packed.items() if coded.static}
    layers = _decode_adaptive(adaptive, shapes) | _decode_static(static, shapes)
    return {name: layers[name] for name in packed}
