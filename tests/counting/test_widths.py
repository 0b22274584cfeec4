"""Counting by widths, against every output element in whole numbers; no sum overflows."""

import itertools
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import MICRONET, call, few_values, save_network, ternary_micronet
from torch import Tensor, nn

import run_scoring
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.quantizers import ActivationQuantizer
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.counting import report
from model_scoring.counting.layer_widths import FIELDS, LayerWidths
from model_scoring.counting.scoring import score, warnings
from model_scoring.counting.settings import Settings
from model_scoring.counting.sums import Sums, levels
from model_scoring.dead_channels.removal import thin

run = partial(call, run_scoring.main)
STEP, WEIGHT_STEP = 0.25, 0.125  # powers of two: floats are exact


def quantizer(bits: int, signed: bool = False) -> ActivationQuantizer:
    module = ActivationQuantizer(bits, signed)
    module.step.data.fill_(STEP)
    return module


def random_weights(shape: tuple[int, ...], values: list[float], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]


class Adders:
    """Counts what adders add, bit by bit, and refuses a sum that does not fit."""

    def __init__(self, limit: int = 32) -> None:
        self.limit, self.bits, self.widest = limit, 0, 0

    def tree(self, operands: list[int], lows: list[int], width: int) -> int:
        """The exact sum of whole numbers, the i-th at least lows[i]: unsigned, without these."""
        nodes, self.widest = [x - low for x, low in zip(operands, lows, strict=True)], width
        assert all(0 <= node < 2**width for node in nodes)
        while len(nodes) > 1:
            pairs = list(zip(nodes[::2], nodes[1::2], strict=False))
            self.bits += width * len(pairs)
            width = min(width + 1, self.limit)
            nodes = [a + b for a, b in pairs] + nodes[2 * len(pairs) :]
            assert all(node < 2**width for node in nodes)
        self.widest = max(self.widest, width)
        return sum(nodes) + sum(lows)


def patches(layer: nn.Conv2d, codes: Tensor) -> Tensor:
    """(filters, positions, taps) of the whole numbers that each filter sees, borders included."""
    columns = F.unfold(codes.double(), layer.kernel_size, 1, layer.padding, layer.stride)
    taps = columns.reshape(layer.groups, -1, columns.shape[-1]).long()
    return taps.mT.repeat_interleave(layer.out_channels // layer.groups, 0)


def count_elements(layer: nn.Conv2d, codes: Tensor, limits: tuple[int, int], width: int, how: str):
    """Bits added in trees, additions of 32 bits and products (a list of widths) of a layer, one
    output element after the other, and its result in whole numbers; `limits` of the codes."""
    adders, joins, products, found, widest = Adders(), 0, [], [], 0
    (low, high), seen = limits, patches(layer, codes)
    for o, weight in enumerate(layer.weight.detach().flatten(1)):
        for position in seen[o]:
            pairs = [(w, int(x)) for w, x in zip(weight.tolist(), position, strict=True) if w]
            sums = []
            if how == "values":  # a sum for each magnitude, a product for each sum
                for size in sorted({abs(w) for w, _ in pairs}):
                    signed = [(x if w > 0 else -x, low if w > 0 else -high)
                              for w, x in pairs if abs(w) == size]  # fmt: skip
                    sums.append(size * adders.tree(*map(list, zip(*signed, strict=True)), width))
                    products.append(16)
                    widest = max(widest, adders.widest)
            else:
                numbers = [(round(w / WEIGHT_STEP), x) for w, x in pairs]
                lows = [min(w * low, w * high) for w, _ in numbers]
                total = adders.tree([w * x for w, x in numbers], lows, width) if numbers else 0
                sums, widest = [total * WEIGHT_STEP], max(widest, adders.widest)
                products += [width // 2] * len(numbers) + [16]  # with the step at last
            joins += max(len(sums) - 1, 0)
            found.append(sum(sums))
    return adders.bits, joins, products, torch.tensor(found), widest


WEIGHTS = {
    "ternary": ([-0.5, 0.0, 0.0, 0.25], "values"),
    "opposite": ([-0.5, 0.0, 0.5], "values"),
    "one side": ([0.0, 0.5], "values"),
    "five values": ([-1.0, -0.25, 0.0, 0.5, 1.0], "values"),
}
SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 3), "stride": (2, 1)},
    {"kernel_size": 1},
    {"kernel_size": 3, "groups": 2, "padding": 1},
]


def worst(layer: nn.Conv2d, low: int, high: int, sign: int) -> Tensor:
    """An image of codes that takes one filter as far as any can."""
    taps = layer.weight.detach().sum(0, keepdim=True).sum((2, 3), keepdim=True) * sign
    codes = torch.where(taps > 0, high, low).expand(1, -1, 4, 5)
    return codes.repeat(1, layer.groups, 1, 1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_against_every_output_element(kind, bits, signed):
    values, how = WEIGHTS[kind]
    for seed, shape in enumerate(SHAPES if bits == 4 else SHAPES[:2]):
        layer = nn.Conv2d(4, 6, bias=False, **shape)
        layer.weight.data = random_weights(layer.weight.shape, values, seed)
        layer.weight.data[:, 0, 0, 0] = values[-1]  # no input and no filter is dead
        module = quantizer(bits, signed)
        result = score(nn.Sequential(module, layer).eval(), (4, 4, 5))
        count = result.counts["strict"][-1]
        images = [torch.randint(module.low, module.high + 1, (1, 4, 4, 5))]
        images += [worst(layer, module.low, module.high, sign) for sign in (1, -1)]
        for codes in images:
            limits = (module.low, module.high)
            added, joins, products, found, widest = count_elements(layer, codes, limits, bits, how)
            expected = layer(codes.float()).detach().flatten()
            assert torch.equal(found.float(), expected)  # the same numbers as the network
            assert count.adds == pytest.approx(added / 32 + joins)
            assert count.mults == pytest.approx(sum(products) / 32)
            assert count.accumulator_bits == widest
        assert (count.activation_bits, count.weight_bits) == (bits, 3 if len(values) > 4 else 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_whole_weights_against_every_output_element(bits):
    """Weights and activations of as many bits: products of twice as many."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = [*map(float, range(low, high + 1))]
    for seed, shape in enumerate(SHAPES):
        layer = nn.Conv2d(4, 6, bias=False, **shape)
        layer.weight.data = random_weights(layer.weight.shape, values, seed)
        layer.weight.data[:, 0, 0, 0] = high
        layer.weight.data *= WEIGHT_STEP
        module = quantizer(bits)
        settings = Settings(widths=(LayerWidths("1", weight_bits=bits),))
        result = score(nn.Sequential(module, layer).eval(), (4, 4, 5), settings=settings)
        count = result.counts["strict"][-1]
        images = [torch.randint(0, module.high + 1, (1, 4, 4, 5))]
        for codes in (*images, *(worst(layer, 0, module.high, sign) for sign in (1, -1))):
            added, _, products, found, widest = count_elements(
                layer, codes, (0, module.high), 2 * bits, "products"
            )
            assert torch.allclose(found.float(), layer(codes.float()).detach().flatten())
            assert count.adds == pytest.approx(added / 32)
            assert count.mults == pytest.approx(sum(products) / 32)
            assert (count.accumulator_bits, count.weight_bits) == (widest, bits)
        with_mask = count.nonzeros * bits + count.weights
        stored = min(with_mask, count.weights * bits) + 16  # and a step
        assert count.params == pytest.approx(stored / 32)


def test_no_tree_overflows():
    """The largest sum of k operands of b bits, and of as many products, in so many bits."""
    sizes = [*range(1, 70), 576, 1023, 1024, 1025, 4608]
    for bits, k in itertools.product((1, 2, 4, 8, 16), sizes):
        needed = Sums.of([(k, 1)], bits, 32).bits
        assert k * (2**bits - 1) < 2**needed and needed == bits + levels(k)
        assert k == 1 or k * (2**bits - 1) >= 2 ** (needed - 2)  # and hardly wider than that
    for a, w in itertools.product((2, 4, 8), repeat=2):  # any signs
        xs = [0, 2**a - 1, -(2 ** (a - 1)), 2 ** (a - 1) - 1]
        for weight in (2**w - 1, -(2 ** (w - 1)), 2 ** (w - 1) - 1):
            for low, high in (xs[:2], xs[2:]):
                assert abs(weight) * (high - low) < 2 ** (a + w)


def test_accumulators_of_one_width_and_trees_with_a_limit():
    layer = nn.Conv2d(32, 2, 1, bias=False)
    layer.weight.data.fill_(0.5)
    layer.weight.data[0, 0] = 0  # 31 and 32 operands of one value
    network = nn.Sequential(quantizer(8), layer).eval()

    def adds(**options) -> tuple[float, int]:
        result = score(network, (32, 1, 1), settings=Settings(**options))
        return result.counts["strict"][-1].adds * 32, result.counts["strict"][-1].accumulator_bits

    def tree(k: int, limit: int) -> int:
        nodes, width, total = k, 8, 0
        while nodes > 1:
            total += nodes // 2 * width
            nodes, width = nodes - nodes // 2, min(width + 1, limit)
        return total

    assert adds() == (tree(31, 32) + tree(32, 32), 13)
    assert adds(add_bits=10) == (tree(31, 10) + tree(32, 10), 10)
    for bits in (16, 32):
        assert adds(accumulators=bits) == ((30 + 31) * bits, bits)
        assert adds(accumulators=bits, tree_adder=False) == ((30 + 31) * bits, bits)
    assert adds(tree_adder=False) == ((30 + 31) * 32, 32)
    tight = score(network, (32, 1, 1), settings=Settings(add_bits=10))
    assert [line for line in warnings(tight) if "1 13 bits in 10" in line]
    assert not any("overflow" in line for line in warnings(score(network, (32, 1, 1))))


@torch.no_grad()
def test_a_value_each_is_of_the_weights_that_are_left():
    """Of three values one is left where the others meet constants; as in the thin network."""
    before, layer = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)
    before.weight[[0, 1]] = 0
    layer.weight.copy_(torch.tensor([-0.5, 0.0, 0.25, 0.25])[None, :, None, None])
    network = nn.Sequential(before, quantizer(4, True), layer).eval()
    networks = network, thin(network, (4, 3, 3)).network
    one, other = (score(n, (4, 3, 3)).totals["strict"] for n in networks)
    assert (one.adds, one.mults) == (other.adds, other.mults)


@torch.no_grad()
def test_a_step_is_stored_whichever_channels_are_dead():
    layers = nn.Conv2d(3, 4, 1, bias=False), quantizer(4), nn.Conv2d(4, 4, 1, bias=False)
    found = []
    for dead in range(4):
        layers[0].weight.fill_(1.0)
        layers[0].weight[dead] = 0
        result = score(nn.Sequential(*layers).eval(), (3, 2, 2), rules=("strict",))
        found.append(result.totals["strict"].params)
        assert sum(c.params for c in result.counts["strict"][1:3]) == 1 / 2
    assert len(set(found)) == 1


def test_sixteen_bit_activations_are_counted_as_ever():
    """Ternary layers of other activations: trees from 16 to 32 bits, whatever --add-bits says."""
    network = ternary_micronet()
    for rules in ("published", "strict"):
        found = [score(network, (3, 32, 32), settings=Settings(add_bits=b)) for b in (16, 32)]
        layers = [[c for c in r.counts[rules] if c.weight_bits == 2] for r in found]
        assert [c.sums for c in layers[0]] == [c.sums for c in layers[1]]
        assert {c.activation_bits for c in layers[0]} == {16}
        assert max(c.accumulator_bits for c in layers[0]) > 16


def test_published_counts_by_widths_as_well():
    network = few_values(nn.Sequential(quantizer(4), nn.Conv2d(8, 8, 3, bias=False)), part="1")
    (count,) = [c for c in score(network.eval(), (8, 4, 4)).counts["published"] if c.weights]
    v = count.nonzeros / 8
    expected, nodes, width = 0.0, v - 1, 4
    while nodes > 1:
        expected += nodes // 2 * width
        nodes, width = -(-nodes // 2), width + 1
    assert count.adds == pytest.approx(expected / 32 * 8 * 4)
    assert count.mults == 2 * 8 * 4 / 2


@pytest.mark.parametrize("rules", ["published", "strict"])
def test_a_batchnorm_takes_the_step_of_whole_weights(rules):
    """One product an output either way; its scale is stored as codes leave no room for it."""
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
    settings = Settings(widths=(LayerWidths("0", 4, 8),))
    alone, both = (
        score(nn.Sequential(*layers).eval(), (4, 2, 2), settings=settings).counts[rules]
        for layers in ([conv], [conv, norm])
    )
    assert alone[0].mults - both[0].mults == 24 / 2
    assert (alone[0].params - both[0].params) * 2 == 1
    if rules == "strict":
        assert (both[1].params * 2, both[1].mults * 2, both[1].adds) == (6 + 6, 24, 24)


def test_operations_on_whole_numbers_are_as_narrow_as_these():
    """Comparisons of 4-bit activations take 4 bits; their sums trees from 4 bits."""
    network = nn.Sequential(quantizer(4), nn.MaxPool2d(2), nn.AvgPool2d(4)).eval()
    result = score(network, (3, 8, 8))
    largest, average = result.counts["strict"][-2:]
    assert (largest.activation_bits, largest.mults) == (4, 3 * 48 * 4 / 32)
    assert average.adds == 3 * (8 * 4 + 4 * 5 + 2 * 6 + 7) / 32
    assert average.mults == 3 * 16 / 32


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.pt"
    return save_network(path, ternary_micronet(), MICRONET)


def test_a_file_says_the_widths_of_a_foreign_network(network_file, tmp_path, capsys):
    widths, target = tmp_path / "widths.json", tmp_path / "score.json"
    content = {r"\.conv": {"activation_bits": 4}, "linear": dict.fromkeys(FIELDS, 8)}
    widths.write_text(json.dumps(content))
    code, out, err = run(
        capsys, "--t-model", network_file, "--widths", widths, "--json", target, "--rules", "strict"
    )
    assert (code, err) == (0, "")
    layers = {layer["name"]: layer for layer in json.loads(target.read_text())["layers"]}
    bits = {name: (v["weight_bits"], v["activation_bits"]) for name, v in layers.items()}
    assert [bits[n] for n in ("conv1", "layer1.0.conv1", "linear")] == [(16, 16), (2, 4), (8, 8)]
    assert layers["bn1"]["weight_bits"] is None
    assert layers["linear"]["accumulator_bits"] == 16 + 5  # 32 inputs
    lines = [line for line in out.splitlines() if "operations, score:" in line]
    assert len(lines) == 3 and all(name in "".join(lines) for name in ("trees", "16-bit", "32-bit"))


def test_the_summary_compares_accumulators(network_file, capsys):
    """As much as counting with each of them."""
    code, out, _ = run(capsys, "--t-model", network_file, "--accumulators", 32)
    assert code == 0
    lines = {line.split(":")[1].strip().split()[0]: line for line in out.splitlines() if
             line.startswith("operations, score:")}  # fmt: skip
    for name, key in (("tree", "adder"), ("16", "16-bit"), ("32", "32-bit")):
        code, out, _ = run(capsys, "--t-model", network_file, "--accumulators", name)
        row = next(line.split() for line in out.splitlines() if line.startswith("operations  "))
        assert all(f" {figure}, " in lines[key] for figure in row[1:]), (row, lines[key])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"nowhere": {"weight_bits": 4}}, "nowhere"),
        ({"conv": {"weight_bits": 4}, "nowhere": {"weight_bits": 4}}, "nowhere"),
        ({"conv": {"weight_bits": 0}}, "1 to 32"),
        ({"conv": {"weight_bits": 33}}, "1 to 32"),
        ({"conv": {"weight_bits": True}}, "1 to 32"),
        ({"conv": {"bits": 4}}, "weight_bits and activation_bits, not 'bits'"),
        ({"conv": {"bits": 4, "weight_bits": 4}}, "activation_bits, not 'bits'"),
        ({"conv": {}}, "weight_bits"),
        ({"conv": 4}, "weight_bits"),
        ({"(": {"weight_bits": 4}}, "regular expression"),
        ({"a{1,9999999999}": {"weight_bits": 4}}, "regular expression"),
        ({"(" * 9999: {"weight_bits": 4}}, "regular expression"),
        ([4], "REGEX"),
        ({}, "REGEX"),
        ("{", "no JSON"),
        ("[" * 99999, "no JSON"),
        (None, "o such file"),
    ],
)
def test_widths_that_say_nothing_are_one_line(network_file, tmp_path, capsys, content, words):
    path, target = tmp_path / "widths.json", tmp_path / "out.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    code, out, err = run(capsys, "--t-model", network_file, "--widths", path, "--json", target)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err and "--widths" in err
    assert not target.exists()


def test_every_layer_has_its_widths():
    """JSON and CSV name them, layer by layer."""
    network = build(NetworkSpec("lenet-5", 10))
    network.conv2 = nn.Sequential(quantizer(4), network.conv2)
    result = score(network.eval(), (1, 28, 28))
    content = report.to_dict(result, model="lenet-5", checkpoint=None, image_size=28)
    found = {v["name"]: v for v in content["layers"] if v["weights"]}
    assert [v["activation_bits"] for v in found.values()] == [16, 4, 16, 16, 16]
    assert {v["weight_bits"] for v in found.values()} == {16}
    assert {v["accumulator_bits"] for v in found.values()} == {32}
    header, first, *_ = report.to_csv(result, "strict").splitlines()
    assert "weight_bits,activation_bits,accumulator_bits" in header and ",16,16,32," in first


def test_layers_without_a_nonzero_weight_cost_nothing():
    conv = nn.Conv2d(2, 6, 3, bias=False)
    torch.nn.init.zeros_(conv.weight)
    body = nn.Sequential(nn.Conv2d(3, 2, 3), quantizer(4), conv, nn.ReLU())
    network = nn.Sequential(*body, quantizer(4), nn.Flatten(), nn.Linear(24, 2)).eval()
    torch.nn.init.zeros_(network[-1].weight)
    counted = score(network, (3, 6, 6), family="", rules=("strict",))
    assert counted.totals["strict"].mults == counted.totals["strict"].adds == 0
