"""Packed files: every bit comes back, no damaged one is read, sizes and speeds hold."""

import json
import math
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    call,
    few_values,
    save_images,
    save_network,
    ternary_micronet,
    with_activations,
)
from torch import nn

import run_scoring
from data import load_data
from data.image_files import read_image
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import (
    load_network,
)
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.inference import prediction
from model_scoring.packed_file import context_model, format, static_coder
from model_scoring.packed_file.fixed_point import LOG2, ONE, SPAN, UNIT, squash, stretch
from model_scoring.packed_file.float_tensors import pack_dense, unpack_dense
from model_scoring.packed_file.format import PackedFile, pack, read_any
from model_scoring.packed_file.quantized_layers import (
    Coded,
    layout,
    pack_layers,
    quantized,
    unpack_layers,
)
from model_scoring.packed_file.rans_coder import Decoder, Encoder
from model_scoring.packed_file.static_coder import StaticLayer
from model_scoring.packed_file.structure import saved_bits, structure_bits


def entropy_bytes(values: np.ndarray) -> float:
    """Order-0 entropy of an array."""
    shares = np.unique(values, return_counts=True)[1] / values.size
    return -values.size * float((shares * np.log2(shares)).sum()) / 8


def draw(rng: np.random.Generator, shape: tuple, side: int, zeros: float) -> np.ndarray:
    """float32 weights with up to `side` values on each side of zero."""
    low, high = (np.sort(rng.random(side).astype(np.float32) + 0.01) for _ in range(2))
    values = np.concatenate([-low, [np.float32(0)], high])
    shares = np.full(2 * side + 1, (1 - zeros) / (2 * side))
    shares[side] = zeros
    return values[rng.choice(2 * side + 1, shape, p=shares)].astype(np.float32)


def round_trip(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers = {name: quantized(w) for name, w in weights.items()}
    assert all(layers.values())
    shapes = {name: w.shape for name, w in weights.items()}
    return {n: q.weights() for n, q in unpack_layers(pack_layers(layers), shapes).items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- integers instead of floating point


def test_logarithm_and_its_inverse():
    n = np.arange(1, 65536)
    assert np.array_equal(LOG2[1:], np.floor(256 * np.log2(n) + 1e-9))
    s = np.arange(-2 * SPAN, 2 * SPAN)
    exact = ONE / (1 + 2.0 ** -(s.clip(-SPAN, SPAN) / UNIT))
    assert np.abs(squash(s) - exact).max() < ONE / 1000
    assert (np.diff(squash(s)) >= 0).all() and squash(s).min() >= 16
    assert stretch(np.array([3072]), np.array([1024]))[0] == math.floor(256 * math.log2(3))


# --- coder


@pytest.mark.parametrize(
    ("layers", "lanes", "states"), [(1, 16, 1), (5, 30, 7), (3, 10, 10), (2, 1, 1)]
)
def test_coder_returns_the_symbols_in_as_many_bits_as_they_are_worth(layers, lanes, states):
    rng = np.random.default_rng(lanes)
    encoder, steps, bits = Encoder(layers, states), [], 0.0
    for _ in range(20):
        cuts = np.sort(rng.integers(1, ONE - 1, (2, layers, lanes)), axis=0)
        cuts[1] = np.maximum(cuts[1], cuts[0] + 1)
        cuts[:, rng.random((layers, lanes)) < 0.2] = ONE  # nothing to code
        symbols = (rng.integers(0, ONE, (layers, lanes)) >= cuts).sum(0).astype(np.int8)
        edges = np.concatenate([np.zeros_like(cuts[:1]), cuts, np.full_like(cuts[:1], ONE)])
        width = np.take_along_axis(np.diff(edges, axis=0), symbols[None].astype(int), 0)
        bits -= np.log2(width / ONE).sum()
        steps.append((list(cuts), symbols))
        encoder.code(*steps[-1])
    parts = encoder.finish()
    assert sum(map(len, parts)) <= bits / 8 + 4 * layers * states
    decoder = Decoder(parts, states)
    assert all(np.array_equal(decoder.code(cuts), symbols) for cuts, symbols in steps)
    decoder.finish()


def test_coder_notices_missing_words():
    encoder = Encoder(1, 1)
    cuts = [np.full((1, 64), 30_000)]
    symbols = np.arange(64)[None] % 2
    encoder.code(cuts, symbols)
    part = encoder.finish()[0]
    for damaged in (part[:-2], part + b"\0\0"):
        decoder = Decoder([damaged], 1)
        decoder.code(cuts)
        with pytest.raises(CheckpointError):
            decoder.finish()
    with pytest.raises(CheckpointError):
        Decoder([part[:-1]], 1)


# --- layers

SHAPES = [(1, 1), (3, 1), (1, 5), (10, 64), (64, 10), (70, 90), (8, 4, 1, 1), (80, 8, 1, 1)]
SHAPES += [(16, 16, 3, 3), (6, 1, 5, 5), (7, 13, 1, 3), (5, 9, 3), (4, 3, 2, 3, 3), (40, 1, 3, 3)]
SHAPES += [(2, 2, 33, 33), (1100, 2), (1, 1, 9000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_of_any_shape_come_back(shape):
    rng = np.random.default_rng(math.prod(shape))
    weights = {str(z): draw(rng, shape, 1, z) for z in (0.1, 0.5, 0.9)}
    weights = {name: w for name, w in weights.items() if quantized(w)}
    weights["zeros"] = np.zeros(shape, np.float32)
    found = round_trip(weights)
    assert all(same_bits(found[name], weights[name]) for name in weights)


def test_random_layers_come_back(full):
    rng = np.random.default_rng(0)
    weights, count = {}, 200 if full else 50
    for i in range(count):
        kernel = [(), (1, 1), (3, 3), (5, 5), (3,)][rng.integers(5)]
        shape = (*rng.integers(1, [17, 5]).tolist(), *kernel)
        side = [1, 2, 3, 7][rng.integers(4)]
        w = draw(rng, shape, side, rng.random())
        one_sided = rng.random() < 0.2
        weights[str(i)] = np.abs(w) if one_sided and side < 7 else w
    weights = {n: w for n, w in weights.items() if quantized(w)}
    assert len(weights) > 0.75 * count
    found = round_trip(weights)
    assert all(same_bits(found[name], weights[name]) for name in weights)


def test_layers_do_not_depend_on_those_packed_with_them():
    rng = np.random.default_rng(1)
    layers = {str(i): quantized(draw(rng, (16, 16, 3, 3), 1, 0.7)) for i in range(4)}
    together = pack_layers(layers)
    assert all(pack_layers({n: layers[n]})[n] == together[n] for n in layers)


@pytest.mark.parametrize("bits", [[0.0, -0.0, 0.5, -0.25], [-0.0, 1.0], [0.0], [-1.5, 2.5]])
def test_signed_zeros_and_binary_layers(bits):
    w = np.array(bits, np.float32)[np.random.default_rng(2).integers(0, len(bits), (20, 9))]
    assert same_bits(round_trip({"w": w})["w"], w)


def test_what_counts_as_a_layer_of_few_values():
    rng = np.random.default_rng(3)
    assert quantized(rng.random((8, 8), np.float32)) is None
    assert quantized(rng.integers(0, 257, (80, 80)).astype(np.float32)) is None  # 257 values
    assert quantized(rng.integers(0, 256, (80, 80)).astype(np.float32)) is not None
    pruned = rng.random((80, 80), np.float32) * (rng.random((80, 80)) < 0.02)
    assert len(np.unique(pruned)) < 256 and quantized(pruned) is None  # full precision
    assert quantized(np.array([[0, 0.3], [-0.2, 0]], np.float32)) is not None  # small, ternary
    assert quantized(np.array([[1, 0.3], [-0.2, 0]], np.float32)) is None  # small, not ternary
    assert quantized(np.zeros(9, np.float32)) is None
    assert quantized(np.zeros((0, 3), np.float32)) is None


def test_independent_weights_take_their_entropy():
    rng = np.random.default_rng(4)
    for zeros in (0.3, 0.9):
        w = draw(rng, (128, 64, 3, 3), 1, zeros)
        size = len(pack_layers({"w": quantized(w)})["w"].content)
        assert entropy_bytes(w) <= size <= 1.01 * entropy_bytes(w)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_layers_without_structure_say_so(levels):
    """Where neighbours tell nothing, learning that costs more than their entropy."""
    rng = np.random.default_rng(9)
    w = draw(rng, (64, 32, 3, 3), levels, 0.6)
    coded = pack_layers({"w": quantized(w)})["w"]
    assert coded.static
    assert entropy_bytes(w) <= len(coded.content) <= 1.01 * entropy_bytes(w)
    assert same_bits(round_trip({"w": w})["w"], w)


OLD = [
    (lambda n: n * n * 7919 >> 7, 1, 0x11, 603, 2746027599),
    (lambda n: n * 2654435761 % 2**32 * n % 2**32 >> 16, 0, 0xEE, 651, 275786794),
]


@pytest.mark.parametrize(("codes", "informed", "first", "size", "crc"), OLD)
def test_layers_of_older_files_read_as_they_did(codes, informed, first, size, crc):
    """Bytes that older programs wrote; another CRC means that their files no longer read."""
    codes = codes(np.arange(32 * 16 * 9, dtype=np.int64)) % 11
    w = np.select([codes < 2, codes == 2], [0.5, -0.25], 0.0).astype(np.float32)
    w = w.reshape(32, 16, 3, 3)
    layer = quantized(w)
    place = layout(w.shape, 1)
    priors = np.array([(*context_model.densities(layer.codes), informed)], np.int8)
    (part,) = context_model.encode(place.to_coder(layer.codes)[:, :, None], place.geometry, priors)
    values = np.concatenate([layer.negative, layer.positive]).tobytes()
    content = bytes([first]) + priors[0, :2].tobytes() + values + part
    assert (len(content), zlib.crc32(content)) == (size, crc)
    if informed:
        assert pack_layers({"w": layer})["w"] == Coded(content, static=False)
    found = unpack_layers({"w": Coded(content, static=False)}, {"w": w.shape})["w"]
    assert same_bits(found.weights(), w)


def test_static_layers_stay_as_they_are():
    """Bytes that files are made of today."""
    n = np.arange(32 * 64 * 9, dtype=np.int64)
    codes = (n * 2654435761 % 2**32 * n % 2**32 >> 16) % 11
    w = np.select([codes < 2, codes == 2], [0.5, -0.25], 0.0).astype(np.float32)
    coded = pack_layers({"w": quantized(w.reshape(32, 64, 3, 3))})["w"]
    assert (coded.static, len(coded.content), zlib.crc32(coded.content)) == (True, 2528, 1031556524)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 255, 256])
@pytest.mark.parametrize("offset", [-300, -100, 0])
def test_layers_of_up_to_256_values_come_back(count, offset):
    """All negative, of both signs, with and without zero; each in its entropy."""
    rng = np.random.default_rng(count)
    values = (np.arange(count) + offset).astype(np.float32) / 3
    shares = rng.random(count) ** 3 + 1e-3
    w = rng.choice(values, (30, 8, 3, 3), p=shares / shares.sum())
    w.reshape(-1)[:count] = values
    packed = pack_layers({"w": quantized(w)})
    assert same_bits(unpack_layers(packed, {"w": w.shape})["w"].weights(), w)
    assert len(packed["w"].content) <= 1.01 * entropy_bytes(w) + 5 * count + 10


def test_static_coder_takes_the_entropy(monkeypatch):
    """Layers of all sizes, together and alone give the same bytes."""
    monkeypatch.setattr(static_coder, "LANE", 500)
    monkeypatch.setattr(static_coder, "TOGETHER", 10)
    rng = np.random.default_rng(11)
    layers, codes, bits = [], [], []
    for size in (0, 1, 2, 100, static_coder.LANE, 3 * static_coder.LANE + 7):
        for count in (1, 2, 3, 4, 5, 20, 257):
            drawn = np.minimum(rng.geometric(0.3, size) - 1, count - 1)
            counted = np.bincount(drawn, minlength=count)
            layers.append(StaticLayer(size, static_coder.shares(counted)))
            codes.append(drawn)
            bits.append(float(-(counted * np.log2(np.maximum(counted, 1) / max(size, 1))).sum()))
    parts = static_coder.encode(layers, codes)
    for layer, drawn, part, least in zip(layers, codes, parts, bits, strict=True):
        assert static_coder.encode([layer], [drawn]) == [part]
        assert least / 8 - 1 <= len(part) <= 1.01 * least / 8 + 4 * layer.lanes + 4
    for found, drawn in zip(static_coder.decode(layers, parts), codes, strict=True):
        assert np.array_equal(found, drawn)
    assert static_coder.encode([], []) == static_coder.decode([], []) == []


@pytest.mark.parametrize(
    "shares", [[0], [0, 0], [255, 255], [255, 0, 255], [16, 16, 16], [9] * 257]
)
def test_every_symbol_has_an_interval(shares):
    """Whatever shares a file claims."""
    cuts = StaticLayer(1, np.array(shares, np.uint8)).cuts
    assert cuts[0] == 0 and cuts[-1] == ONE and (np.diff(cuts) >= 1).all()


def test_structure_is_what_a_likelihood_ratio_says():
    """Savings of a table by hand; independent codes have none, and shuffling loses them."""
    table = np.array([[30, 10], [10, 30]])
    entropy = 80 - 2 * 40 * (-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert saved_bits(table) == pytest.approx(entropy - math.log2(40))
    rng = np.random.default_rng(12)
    codes = rng.integers(-1, 2, (64, 64, 3, 3)).astype(np.int8)
    assert structure_bits(codes) == 0
    for axis, picked in ((0, 5), (1, 5), (2, 1), (3, 1)):
        dense = np.moveaxis(codes.copy(), axis, 0)
        dense[:picked] = 0
        found = np.moveaxis(dense, 0, axis)
        assert structure_bits(found) > 0
        shuffled = rng.permutation(found.reshape(-1)).reshape(found.shape)
        assert structure_bits(shuffled) == 0
    for axis in (2, 3):  # a tap repeats the one before
        follows = codes.copy()
        first, second = np.split(np.moveaxis(follows, axis, 0), [1])
        second[0, :20] = first[0, :20]
        assert structure_bits(follows) > 0
    assert structure_bits(codes.reshape(64, -1)) == 0


def test_structure_is_found():
    """Densities that differ from filter to filter and input to input, smooth kernels."""
    rng = np.random.default_rng(5)
    filters, inputs = rng.random((64, 1, 1, 1)), rng.random((1, 64, 1, 1))
    smooth = rng.normal(size=(64, 64, 5, 5))
    smooth = sum(smooth[:, :, i : i + 3, j : j + 3] for i in range(3) for j in range(3)) / 3
    kept = np.abs(smooth) > 2 * filters * inputs + 0.3
    w = np.where(kept, np.sign(smooth), 0).astype(np.float32)
    assert len(pack_layers({"w": quantized(w)})["w"].content) < 0.8 * entropy_bytes(w)


# --- other tensors


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_dense_tensors_come_back(dtype):
    rng = np.random.default_rng(6)
    tensors = {
        "noise": (40 * rng.normal(size=(30, 7))).astype(dtype),
        "zeros": np.zeros(1000, dtype),
        "scalar": np.array(3).astype(dtype),
        "none": np.zeros((0, 4), dtype),
    }
    content = pack_dense(tensors)
    shapes = {n: t.shape for n, t in tensors.items()}
    found = unpack_dense(content, shapes, {n: t.dtype for n, t in tensors.items()})
    assert all(same_bits(found[n], tensors[n]) for n in tensors)
    for damaged in (content[:-1], content + b"\0"):
        with pytest.raises(CheckpointError):
            unpack_dense(damaged, shapes, {n: t.dtype for n, t in tensors.items()})


# --- files


MIXED = "test_packing:of_all_kinds"


def of_all_kinds(num_classes: int) -> nn.Module:
    """Depthwise, grouped, pointwise and linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, bias=False),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 6, 3, groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, num_classes),
    )


def random_network(seed: int) -> tuple[nn.Module, NetworkSpec]:
    """A small network; some of its layers with 1 to 15 values, or pruned. In each tenth none."""
    rng = np.random.default_rng(seed)
    arguments = {"blocks": [1, 1, 1], "channels": [8, 8, 16], "stem": 8}
    specs = [NetworkSpec("cifar_micronet", 10, arguments), NetworkSpec("lenet-5", 10)]
    specs.append(NetworkSpec(MIXED, 10))
    spec = specs[seed % 3]
    torch.manual_seed(seed)
    network = build(spec)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = tuple(module.weight.shape)
            kind = rng.integers(6) if seed % 10 < 9 else 5
            if kind < 4:
                w = draw(rng, shape, [1, 2, 3, 7][kind], rng.random())
                module.weight.data = torch.from_numpy(w)
            elif kind == 4:
                module.weight.data *= torch.rand(shape) < 0.2
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.1, 3)
            module.num_batches_tracked += int(rng.integers(1000))
    return network, spec


def assert_one_line(error: CheckpointError) -> None:
    assert error.exit_code == 5 and "\n" not in str(error) and len(str(error)) < 600


def write(folder: Path, content: bytes) -> Path:
    path = folder / "net.ec2t"
    path.write_bytes(content)
    return path


def test_random_networks_come_back(tmp_path, full):
    quick = (2, 3, 5, 8, 9, 11, 13, 14, 15, 17, 18, 19)  # of the first 20
    for seed in range(200) if full else quick:
        network, spec = random_network(seed)
        state, data = network.state_dict(), {"mean": [0.1], "std": [0.2], "class_names": ["é", "b"]}
        path = write(tmp_path, pack(state, spec, data, half=False).content)
        found = read_any(path, trusted=MIXED)
        assert (found.network, found.data) == (spec, data)
        assert list(found.state) == list(state)
        assert all(same_bits(found.state[n].numpy(), state[n].numpy()) for n in state)
        half = pack(state, spec, {})
        rounded = read_any(write(tmp_path, half.content), trusted=MIXED).state
        for name, tensor in state.items():
            exact = name in half.quantized or not tensor.is_floating_point()
            assert torch.equal(rounded[name], tensor if exact else tensor.half().float()), name
        ternary = [n for n, t in state.items() if t.dim() > 1 and len(t.unique()) <= 3]
        assert set(ternary) <= set(half.quantized)


@pytest.mark.parametrize("half", [False, True])
def test_steps_of_activations_come_back_exactly(tmp_path, half):
    network, spec = with_activations(ternary_micronet())
    state = network.state_dict()
    packed = pack(state, spec, {}, half=half)
    found = read_any(write(tmp_path, packed.content))
    assert found.network == spec and not packed.wide
    steps = [name for name in state if name.endswith("quantizer.step")]
    assert len(steps) == len(spec.activations)
    for name in state if not half else [*steps, *packed.quantized]:
        assert same_bits(found.state[name].numpy(), state[name].numpy()), name
    assert not all(torch.equal(state[name], state[name].half().float()) for name in steps)
    again = load_network(found, found.network).eval()
    if not half:
        images = torch.randn(3, 3, 32, 32)
        assert torch.equal(again(images), network(images))
    # 8 steps, and a description of 8 layers
    plain = {name: tensor for name, tensor in state.items() if name not in steps}
    without = pack(plain, replace(spec, activations={}), {}, half=half)
    assert len(packed.content) - len(without.content) < 250


def test_a_layer_is_read_without_the_others(tmp_path):
    network, spec = random_network(15)
    packed = pack(network.state_dict(), spec, {})
    path = write(tmp_path, packed.content)
    name = next(iter(packed.quantized))
    sections = PackedFile(path).sections
    damaged = bytearray(packed.content)
    for other, section in sections.items():
        if other != name and section.length:
            damaged[section.start] ^= 1
    write(tmp_path, bytes(damaged))
    assert torch.equal(PackedFile(path).read([name])[name], network.state_dict()[name])
    with pytest.raises(CheckpointError, match="damaged"):
        read_any(path)


TIED = "test_packing:tied"


def tied(num_classes: int) -> nn.Module:
    """A module under two names, one parameter in two modules, tied biases; ternary or not."""
    network = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
    network.append(network[0])
    network[1].weight, network[3].bias = network[2].weight, network[2].bias
    return network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)])


def test_tied_tensors_are_stored_once(tmp_path):
    """And come back under all their names, as do those of a file that holds them twice."""
    network, spec = tied(3), NetworkSpec(TIED, 3)
    few_values(network, part="1")
    state = network.state_dict()
    untied = {name: tensor.clone() for name, tensor in state.items()}
    packed, whole = (pack(s, spec, {}, half=False) for s in (state, untied))
    assert "2.weight" not in packed.quantized and "2.weight" in whole.quantized
    assert len(packed.content) < len(whole.content) - whole.quantized["2.weight"]
    for content in (packed.content, whole.content):
        path = write(tmp_path, content)
        found = read_any(path, trusted=TIED).state
        assert list(found) == list(state)
        assert all(torch.equal(found[name], state[name]) for name in state)
        for name in state:
            only = PackedFile(path, trusted=TIED).read([name])
            assert list(only) == [name] and torch.equal(only[name], state[name])


@pytest.mark.parametrize(
    "claim",
    [{"2.weight": "no such"}, {"no such": "0.weight"}, {"0.bias": "0.weight"}, {"2.bias": "2.bias"},
     {"2.weight": "1.weight", "1.weight": "0.weight"}, ["2.weight"], {"2.weight": [1]}, 3],
)  # fmt: skip
def test_false_ties_are_errors(tmp_path, monkeypatch, claim):
    json = format._json
    monkeypatch.setattr(format, "_json", lambda description: json(description | {"tied": claim}))
    path = write(tmp_path, pack(tied(3).state_dict(), NetworkSpec(TIED, 3), {}).content)
    with pytest.raises(CheckpointError) as error:
        read_any(path, trusted=TIED)
    assert_one_line(error.value)


def test_values_beyond_fp16_stay_as_they_are(tmp_path):
    network, spec = random_network(15)
    state = network.state_dict()
    state["bn1.running_var"] += 1e5
    packed = pack(state, spec, {})
    assert packed.wide == ["bn1.running_var"]
    found = read_any(write(tmp_path, packed.content)).state
    assert torch.equal(found["bn1.running_var"], state["bn1.running_var"])


DAMAGED = r"cannot be read|is damaged|holds no tensors"


def test_damage_is_an_error_and_nothing_else(tmp_path, full):
    """1,000 flipped bits and 100 cuts: with sections under a CRC each, none gets through."""
    in_header, anywhere, cuts = (400, 600, 94) if full else (100, 150, 24)
    network, spec = random_network(15)
    content = pack(network.state_dict(), spec, {"dataset": "Shapes"}).content
    rng = np.random.default_rng(7)
    header = 13 + int.from_bytes(content[5:9], "little")
    bits = np.concatenate(
        [rng.permutation(8 * header)[:in_header], rng.integers(0, 8 * len(content), anywhere)]
    )
    for bit in bits.tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_any(write(tmp_path, bytes(damaged)))
    for length in [0, 1, 5, 12, header, len(content) - 1, *rng.integers(0, len(content), cuts)]:
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_any(write(tmp_path, content[:length]))
    with pytest.raises(CheckpointError, match=DAMAGED):
        read_any(write(tmp_path, content + b"\0"))


def test_false_claims_are_rejected_before_memory_is_taken(tmp_path):
    """Files whose checks are right but whose contents are not."""
    network, spec = random_network(15)
    for claim in ({"channels": [8, 8, 10**6]}, {"blocks": [1, 1, 10**9]}, {"stem": "8"}):
        huge = NetworkSpec(spec.model, 10, spec.arguments | claim)
        with pytest.raises(CheckpointError, match="network"):
            read_any(write(tmp_path, pack(network.state_dict(), huge, {}).content))
    with pytest.raises(CheckpointError, match="other tensors"):
        more = NetworkSpec(spec.model, 11, spec.arguments)
        read_any(write(tmp_path, pack(network.state_dict(), more, {}).content))
    with pytest.raises(CheckpointError, match="cannot hold"):
        unpack_layers({"w": Coded(b"\x11" + bytes(40), static=False)}, {"w": (10**6, 10**6)})
    with pytest.raises(CheckpointError, match="cannot hold"):
        unpack_layers({"w": Coded(b"\x02" + bytes(40), static=True)}, {"w": (10**6, 10**6)})
    with pytest.raises(CheckpointError, match="cannot hold"):
        unpack_dense(bytes(40), {"w": (10**6, 10**6)}, {"w": np.dtype(np.float32)})


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"network":{"model":' + b"[" * 700 + b"]" * 700 + b"}}",
        b'{"x":[' + b"{}," * 300_000 + b"{}]}",
        b'{"half":true,"network":{"model":"lenet-5","num_classes":10,"arguments":{}},"more":[]}',
        b"[]",
        b"\xff",
        b" " * (1 << 20) + b"{}",
    ],
    ids=["deep", "deep inside", "long", "more than there is", "no object", "no text", "too long"],
)
def test_crafted_descriptions_are_errors(tmp_path, monkeypatch, text):
    network, spec = random_network(13)
    crafted = format.varint(len(text)) + zlib.compress(text, wbits=-15)
    monkeypatch.setattr(format, "_json", lambda description: crafted)
    path = write(tmp_path, pack(network.state_dict(), spec, {}).content)
    with pytest.raises(CheckpointError, match="cannot be read: its description") as error:
        read_any(path)
    assert_one_line(error.value)


def test_nothing_large_is_built_to_see_that_it_is_not_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(format, "expected_tensors", lambda spec: pytest.fail("was built"))
    state = random_network(15)[0].state_dict()
    shape = {"blocks": [9000, 1, 1], "channels": [8, 8, 8], "stem": 8}
    wide = {"blocks": [1, 1, 1], "channels": [8, 8, 10**6], "stem": 8}
    for spec, field in (
        (NetworkSpec("torchvision:regnet_y_400mf", 2_000_000), "num_classes"),
        (NetworkSpec("cifar_micronet", 10, shape), "blocks"),
        (NetworkSpec("cifar_micronet", 10, wide), "channels"),
    ):
        path = write(tmp_path, pack(state, spec, {}).content)
        with pytest.raises(CheckpointError, match=field) as error:
            read_any(path)
        assert_one_line(error.value)


@pytest.mark.parametrize("kind", [format.ADAPTIVE, format.STATIC])
def test_codes_where_none_can_be(tmp_path, monkeypatch, kind):
    network, spec = random_network(13)
    state = network.state_dict()
    some = next(name for name, t in state.items() if t.dim() == 1)
    table = format._table
    monkeypatch.setattr(
        format,
        "_table",
        lambda names, sections, kinds, count: table(
            names,
            {some: b"", **sections} if names[0] == some else sections,
            {**kinds, some: kind},
            count,
        ),
    )
    monkeypatch.setattr(format, "ALONE", 1)
    path = write(tmp_path, pack(state, spec, {}).content)
    with pytest.raises(CheckpointError, match="codes where none can be") as error:
        read_any(path)
    assert_one_line(error.value)


@pytest.mark.parametrize("structure", [False, True])
def test_crafted_layers_are_errors(structure):
    rng = np.random.default_rng(8)
    w = draw(rng, (16, 16, 3, 3), 2, 0.6)
    w[:, :12] *= not structure
    coded = pack_layers({"w": quantized(w)})["w"]
    assert coded.static != structure
    for at in [*range(16), *rng.integers(16, len(coded.content), 4).tolist()]:
        damaged = bytearray(coded.content)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        try:
            crafted = {"w": coded._replace(content=bytes(damaged))}
            found = unpack_layers(crafted, {"w": w.shape})["w"].weights()
            assert found.shape == w.shape  # a value, a density or a share was hit
        except CheckpointError as error:
            assert_one_line(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "beyond the end"), (b"\xff\xff\xff\xff\x01", "values"), (b"\x81\x02", "values"),
     (b"\x02" + bytes(10), "values"), (b"\x02" + bytes(14), "weights"),
     (b"\x02" + bytes(16), "impossible length"), (b"\x02" + bytes(17), "damaged")],
)  # fmt: skip
def test_crafted_static_layers_are_errors(content, words):
    """Of no values, too many, cut off anywhere, of weights that are not there."""
    with pytest.raises(CheckpointError, match=words):
        unpack_layers({"w": Coded(content, static=True)}, {"w": (5, 3)})


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR10 += ["dog", "frog", "horse", "ship", "truck"]


def test_released_weights_shuffled(real_files):
    """Without their order, the same weights take their entropy."""
    state = read_any(real_files / "checkpoints/resnet20_ec2t_spars64.pt").state
    layers = {name: q for name, t in state.items() if (q := quantized(t.numpy() + 0))}
    rng = np.random.default_rng(7)
    shuffled = {
        name: replace(q, codes=rng.permutation(q.codes.reshape(-1)).reshape(q.codes.shape))
        for name, q in layers.items()
    }
    size = sum(len(coded.content) for coded in pack_layers(shuffled).values())
    entropy = sum(entropy_bytes(q.codes) for q in layers.values())
    assert entropy <= size <= 1.01 * entropy


def test_released_checkpoint(real_files, tmp_path):
    path = real_files / "checkpoints/resnet20_ec2t_spars64.pt"
    checkpoint = read_any(path)
    spec = network_spec(checkpoint)
    state = load_network(checkpoint, spec).state_dict()
    packed = pack(state, spec, checkpoint.data)
    assert len(packed.quantized) == 18
    assert sum(packed.quantized.values()) <= 38_500
    assert len(packed.content) <= 44_000
    recorded = {"dataset": "CIFAR10", "image_size": 32, "class_names": CIFAR10}
    recorded |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert len(pack(state, spec, recorded).content) <= 44_000
    full = pack(state, spec, checkpoint.data, half=False)
    found = read_any(write(tmp_path, full.content))
    assert all(same_bits(found.state[n].numpy(), state[n].numpy()) for n in state)


# --- command line


run = partial(call, run_scoring.main)


def test_a_packed_file_scores_and_evaluates_as_the_checkpoint(checkpoint, tmp_path, capsys):
    target = tmp_path / "net.ec2t"
    flags = ["--export", target, "--export-precision", "fp32"]
    code, out, err = run(
        capsys, "--t-model", checkpoint, "--eval", "--json", tmp_path / "a", *flags
    )
    assert (code, err) == (0, "")
    assert f"{target.stat().st_size:,}" in next(x for x in out.splitlines() if "packed file" in x)
    code, again, err = run(capsys, "--t-model", target, "--eval", "--json", tmp_path / "b",
                           "--export", tmp_path / "copy", "--export-precision", "fp32")  # fmt: skip
    assert (code, err) == (0, "")
    cut = str(target)
    assert again.replace(cut, str(checkpoint)).splitlines()[:-2] == out.splitlines()[:-2]
    assert (tmp_path / "copy").read_bytes() == target.read_bytes()
    scores = [json.loads((tmp_path / n).read_text().replace(cut, str(checkpoint))) for n in "ab"]
    for score in scores:
        del score["environment"]  # another command, at another time
    assert scores[0] == scores[1]


def val_images(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Five images in two classes."""
    save_images(folder / "val" / "a", 3, size)
    save_images(folder / "val" / "b", 2, size)
    return sorted(folder.rglob("*.png"))


@pytest.mark.parametrize("size", [(32, 32), (50, 41)])
@pytest.mark.parametrize("packed", [False, True])
def test_predictions_are_those_of_the_evaluation(checkpoint, tmp_path, capsys, size, packed):
    paths = val_images(tmp_path / "set", size)
    network = ternary_micronet()
    data = load_data("ImageFolder", data_path=tmp_path / "set", image_size=32, splits=("val",),
                     normalize=([0.5, 0.5, 0.4], [0.2, 0.2, 0.3]))  # fmt: skip
    batch = torch.cat([b for b, _ in data.val.epoch(0)])
    values, classes = network.eval()(batch).softmax(1).topk(3)
    model = checkpoint
    if packed:
        model = tmp_path / "net.ec2t"
        run(capsys, "--t-model", checkpoint, "--export", model, "--export-precision", "fp32")
    code, out, err = run(capsys, "--t-model", model, "--predict", tmp_path / "set", "--top", 3)
    assert (code, err) == (0, "")
    for path, line, v, c in zip(paths, out.splitlines()[-5:], values, classes, strict=True):
        cells = [f"class {i} {100 * p:.2f} %" for i, p in zip(c.tolist(), v.tolist(), strict=True)]
        assert line == f"{path}  {', '.join(cells)}"


@pytest.mark.parametrize("crop", ["standard", "full"])
def test_large_images_are_prepared_as_in_the_evaluation(tmp_path, crop):
    paths = val_images(tmp_path / "set", (110, 150))
    stats = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    data = load_data("ImageFolder", data_path=tmp_path / "set", image_size=96, splits=("val",),
                     eval_crop=crop, normalize=stats, workers=0)  # fmt: skip
    prepare = prediction.Preparation(
        prediction.choose_transform("ImageFolder", image_size=96, crop=crop), 3, stats
    )
    expected = torch.cat([batch for batch, _ in data.val.epoch(0)])
    assert torch.equal(torch.stack([prepare(read_image(str(p))) for p in paths]), expected)


def test_one_image_without_class_names(tmp_path, capsys):
    network, _ = random_network(15)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    path = val_images(tmp_path / "set", (40, 40))[0]
    flags = ["--t-model", tmp_path / "net.pt", "--predict", path]
    code, out, _ = run(capsys, *flags, "--normalize", "none")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{path}  ") and out.splitlines()[-1].count("%") == 5
    code, _, err = run(capsys, *flags)
    assert (code, err.count("\n")) == (2, 1) and "--normalize" in err


def test_flags_say_what_the_checkpoint_does_not(tmp_path, capsys):
    """The packed file records how its images are normalised; other images have other classes."""
    network, _ = random_network(15)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    flags = ["--t-model", tmp_path / "net.pt", "--export", tmp_path / "net.ec2t"]
    assert run(capsys, *flags)[0] == 0
    assert PackedFile(tmp_path / "net.ec2t").data == {"image_size": 32}
    assert run(capsys, *flags, "--dataset", "cifar10", "--normalize", "imagenet")[0] == 0
    data = PackedFile(tmp_path / "net.ec2t").data
    assert (data["dataset"], data["mean"]) == ("CIFAR10", [0.485, 0.456, 0.406])
    path = val_images(tmp_path / "set", (32, 32))[0]
    assert run(capsys, "--t-model", tmp_path / "net.ec2t", "--predict", path)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "flags", "code", "words"),
    [
        ("a.png", b"no image", [], 4, "a.png"),
        ("folder/a.txt", b"text", [], 4, "folder"),
        ("a.jpg", None, [], 4, "a.jpg"),
        ("a.png", b"", ["--top", "11"], 2, "10 classes"),
        ("a.png", b"", ["--top", "0"], 2, "--top"),
        ("a.png", b"", ["--export-precision", "fp8"], 2, "--export-precision"),
        ("a.png", b"", ["--onnx-opset", "13"], 2, "--onnx: add it"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, capsys, name, content, flags, code, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    what = path.parent if path.suffix == ".txt" else path
    flags = [*flags, "--export", tmp_path / "x.ec2t"] if "--export-precision" in flags else flags
    found, _, err = run(capsys, "--t-model", checkpoint, "--predict", what, *flags)
    assert (found, err.count("\n")) == (code, 1), err
    assert words in err


def test_predictions_before_an_unreadable_image_are_shown(checkpoint, tmp_path, capsys):
    paths = val_images(tmp_path / "set", (32, 32))
    (paths[-1].parent / "z.png").write_bytes(b"no image")
    code, out, err = run(capsys, "--t-model", checkpoint, "--predict", tmp_path / "set")
    assert (code, err.count("\n")) == (4, 1) and "z.png" in err
    assert [line.split("  ")[0] for line in out.splitlines()[-5:]] == list(map(str, paths))


def test_networks_of_few_classes_show_all(tmp_path, capsys):
    spec = NetworkSpec("lenet-5", 2)
    data = {"mean": [0.1], "std": [0.2], "image_size": 28}
    save_network(tmp_path / "net.pt", build(spec), spec, **data)
    path = val_images(tmp_path / "set", (28, 28))[0]
    code, out, _ = run(capsys, "--t-model", tmp_path / "net.pt", "--predict", path)
    assert code == 0 and out.splitlines()[-1].count("%") == 2


def test_names_of_files_decide_nothing(checkpoint, tmp_path, capsys):
    thin, packed = tmp_path / "thin.ec2t", tmp_path / "packed.pt"
    assert run(capsys, "--t-model", checkpoint, "--thin", thin, "--export", packed)[0] == 0
    assert run(capsys, "--t-model", thin)[0] == run(capsys, "--t-model", packed)[0] == 0


def test_outputs_need_names_of_their_own(checkpoint, tmp_path, capsys):
    same = tmp_path / "same"
    code, _, err = run(capsys, "--t-model", checkpoint, "--json", same, "--export", same)
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run(capsys, "--t-model", checkpoint, "--export", checkpoint)
    assert (code, err.count("\n")) == (2, 1) and "itself" in err


def test_a_builder_of_the_file_s_own_choice_does_not_run(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(
        "import pathlib, torch\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def net(num_classes): return torch.nn.Linear(3, num_classes)\n"
    )
    state = {"weight": torch.randn(2, 3), "bias": torch.zeros(2)}
    path = write(tmp_path, pack(state, NetworkSpec("evil:net", 2), {}).content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError, match="--model evil:net"):
        read_any(path)
    assert not (tmp_path / "ran").exists()
    assert read_any(path, trusted="evil:net").state["weight"].shape == (2, 3)
