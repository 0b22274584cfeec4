"""Layers of few values, packed: codes through the entropy coder, values (the codebook) as they are.

Bytes of a layer: counts of its negative and positive values (4 bits each; all bits inverted if its
weights are independent), two densities (int8), the values (float32, the negative ones first, both
from small to large), the coder's bytes.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.few_values import few_values
from model_scoring.packed_file.context_model import Geometry, decode, densities, encode

Array = np.ndarray
NIBBLE = 15  # largest count of 4 bits; no layer of few values has more of them beside 0
MOST_TAPS = 1024
TOGETHER = 8192  # lanes coded side by side: more no longer fit the processor's cache
MANY = 1 << 20  # weights of which a second try takes time
WEIGHTS_PER_BYTE = 40_000  # the coder's probabilities end at 1/4096: no layer gets smaller


@dataclass(frozen=True)
class Quantized:
    """A layer's weights as int8 codes of any shape, and the values of the negative and positive
    codes. Code 0 is +0.0; -0.0 is a negative value, so that every bit comes back."""

    codes: Array
    negative: Array  # float32, of -n ... -1
    positive: Array  # of 1 ... p

    @property
    def levels(self) -> int:
        """Largest magnitude of a code, at least 1."""
        return max(1, len(self.negative), len(self.positive))

    def weights(self) -> Array:
        table = np.concatenate([self.negative, np.zeros(1, np.float32), self.positive])
        return table[self.codes.astype(np.intp) + len(self.negative)]


def quantized(weights: Array) -> Quantized | None:
    """The codes of a float32 layer of few values; None of any other layer, or of a vector."""
    if weights.ndim < 2 or weights.dtype != np.float32:
        return None
    found = few_values(torch.from_numpy(weights))
    if found is None or found.isnan().any():
        return None
    values, negative_zero = found.numpy(), np.float32(-0.0)
    bits = np.ascontiguousarray(weights).reshape(-1).view(np.int32)  # they tell -0.0 from 0.0
    negative, positive = values[values < 0], values[values > 0]
    if (bits == negative_zero.view(np.int32)).any():
        negative = np.append(negative, negative_zero)
    table = np.concatenate([negative, np.zeros(1, np.float32), positive]).view(np.int32)
    order = np.argsort(table)
    ranks = order[np.searchsorted(table, bits, sorter=order)]
    codes = (ranks - len(negative)).astype(np.int8).reshape(weights.shape)
    return Quantized(codes, negative, positive)


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


def _encode(layers: Mapping[str, Quantized], *, informed: bool) -> dict[str, bytes]:
    """The bytes of each layer, its weights predicted from their neighbours or not."""
    layouts = {name: layout(layer.codes.shape, layer.levels) for name, layer in layers.items()}
    packed = {}
    for geometry, names in _groups(layouts):
        codes = np.stack([layouts[n].to_coder(layers[n].codes) for n in names], axis=2)
        priors = np.array([(*densities(layers[n].codes), informed) for n in names], dtype=np.int8)
        parts = encode(codes, geometry, priors)
        for name, prior, part in zip(names, priors, parts, strict=True):
            low, high = layers[name].negative, layers[name].positive
            counts = len(low) << 4 | len(high)
            head = bytes([counts if informed else counts ^ 255]) + prior[:2].tobytes()
            packed[name] = head + np.concatenate([low, high]).astype("<f4").tobytes() + part
    return packed


def pack_layers(layers: Mapping[str, Quantized]) -> dict[str, bytes]:
    """The bytes of each layer."""
    packed = _encode(layers, informed=True)
    # Where neighbours tell nothing, learning that costs more than the entropy. That is seen only
    # now, and a second try is worth its time for 1 % of many weights, or less of few.
    limit = 1.003 if sum(layer.codes.size for layer in layers.values()) < MANY else 1.01
    random = {}
    for name, layer in layers.items():
        values = len(layer.negative) + len(layer.positive)
        states = layout(layer.codes.shape, layer.levels).geometry.states
        size = len(packed[name]) - 3 - 4 * values - 4 * states  # of the codes alone
        counts = np.bincount(layer.codes.reshape(-1) + len(layer.negative))
        shares = counts[counts > 0] / layer.codes.size
        # bytes of codes that are each drawn by itself: their order-0 entropy
        entropy = float(-(shares * np.log2(shares)).sum()) * layer.codes.size / 8
        if size > limit * entropy and values < NIBBLE:
            random[name] = layer
    for name, content in _encode(random, informed=False).items():
        packed[name] = min(content, packed[name], key=len)
    return {name: packed[name] for name in layers}


def _parse(
    content: bytes, shape: tuple[int, ...]
) -> tuple[Layout, Array, tuple[Array, Array], bytes]:
    """A layer's layout, priors, negative and positive values, and the coder's bytes."""
    if len(content) < 3 or math.prod(shape) > WEIGHTS_PER_BYTE * len(content):
        raise CheckpointError(f"{len(content)} bytes cannot hold {math.prod(shape):,} weights")
    low, high = content[0] >> 4, content[0] & 15
    informed = low + high <= NIBBLE
    if not informed:
        low, high = NIBBLE - low, NIBBLE - high
    start = 3 + 4 * (low + high)
    if len(content) < start:
        raise CheckpointError(f"{len(content)} bytes cannot hold {low + high} values")
    values = np.frombuffer(content, "<f4", low + high, offset=3).astype(np.float32)
    priors = np.array([*np.frombuffer(content, np.int8, 2, offset=1), informed], dtype=np.int8)
    place = layout(shape, max(1, low, high))
    return place, priors, (values[:low], values[low:]), content[start:]


def unpack_layers(
    packed: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    """The layers again, or some of them. Raises CheckpointError if the bytes are damaged."""
    parsed = {name: _parse(content, shapes[name]) for name, content in packed.items()}
    layers = {}
    for geometry, names in _groups({name: place for name, (place, *_) in parsed.items()}):
        _, priors, _, parts = zip(*(parsed[name] for name in names), strict=True)
        codes = decode(parts, geometry, np.stack(priors))
        for i, name in enumerate(names):
            place, _, (low, high), _ = parsed[name]
            own = place.from_coder(codes[:, :, i])
            if own.size and not -len(low) <= own.min() <= own.max() <= len(high):
                raise CheckpointError("a layer has codes without values")
            layers[name] = Quantized(own, low, high)
    return {name: layers[name] for name in packed}
