"""The strict rules: a closed form each, and a count of every output element one by one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_scoring.counting.scoring import score
from model_scoring.counting.settings import Settings
from model_scoring.counting.weight_formats import cheapest, tree_bits

FP32 = Settings(32, 32, 32, tree_adder=False)


def strict(network: nn.Module, shape=(3, 8, 8), settings: Settings = FP32) -> dict:
    result = score(network.eval(), shape, settings=settings)
    assert not result.trace.unknown
    pairs = zip(result.records, result.counts["strict"], strict=True)
    return {record.name: count for record, count in pairs}


def ternary(layer: nn.Module, values=(-0.5, 0.0, 0.25), seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(3, layer.weight.shape, generator=generator)
    layer.weight.data = torch.tensor(values)[choice]
    return layer


def costs(count) -> tuple[float, float, float]:
    return count.params, count.adds, count.mults


class Call(nn.Module):
    """A network made of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("bias", [False, True])
def test_dense_convolution(bias):
    conv = nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, bias=bias)
    out = 5 * 4 * 5  # from 8x9
    count = strict(nn.Sequential(conv), (3, 8, 9))["0"]
    assert costs(count) == (90 + 5 * bias, 17 * out + bias * out, 18 * out)


def test_dense_linear():
    count = strict(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2))["1"]
    assert costs(count) == (12 * 7 + 7, 11 * 7 + 7, 12 * 7)


def test_linear_on_every_position():
    count = strict(Call(lambda x: x * 2), (3, 4, 4))
    assert costs(count["scale"]) == (0, 0, 48)
    network = nn.Sequential(nn.Flatten(2), nn.Linear(16, 5, bias=False))
    assert costs(strict(network, (3, 4, 4))["1"]) == (80, 15 * 5 * 3, 16 * 5 * 3)


def test_16_bit_values_and_multiplications():
    count = strict(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)), settings=Settings())["0"]
    assert costs(count) == (12 / 2, 2 * 4 * 64, 3 * 4 * 64 / 2)


def test_batchnorm_that_folds_and_one_that_does_not():
    folded = strict(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))["1"]
    assert costs(folded) == (4, 256, 0)
    into_bias = strict(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))["1"]
    assert costs(into_bias) == (0, 0, 0)
    alone = strict(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))["1"]
    assert costs(alone) == (6, 192, 192)
    after_ternary = nn.Sequential(ternary(nn.Conv2d(3, 4, 3, bias=False)), nn.BatchNorm2d(4))
    assert costs(strict(after_ternary)["1"]) == (8, 4 * 36, 4 * 36)


def test_batchnorm_does_not_fold_into_a_layer_with_another_user():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    counts = strict(Fork())
    assert costs(counts["bn"]) == (8, 256, 256)
    assert costs(counts["add"]) == (0, 256, 0)


@pytest.mark.parametrize(
    ("function", "mults", "adds"),
    [
        (F.relu, 1, 0),
        (F.relu6, 2, 0),
        (F.silu, 3, 1),
        (torch.sigmoid, 2, 1),
        (F.hardsigmoid, 3, 1),
        (F.hardswish, 4, 1),
        (torch.tanh, 3, 2),
        (F.gelu, 4, 1),
        (lambda x: x + x, 0, 1),
        (lambda x: x * x, 1, 0),
        (lambda x: x.clone().relu_(), 1, 0),
    ],
)
def test_elementwise(function, mults, adds):
    (count,) = strict(Call(function)).values()
    assert costs(count) == (0, adds * 192, mults * 192)


@pytest.mark.parametrize(
    ("function", "mults", "adds"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, 1), 3, 63 * 3),
        (lambda x: x.mean((2, 3)), 3, 63 * 3),
        (lambda x: F.avg_pool2d(x, 2), 48, 3 * 48),
        (lambda x: F.avg_pool2d(x, (2, 4)), 24, 7 * 24),
        (lambda x: F.max_pool2d(x, 3, 2, 1), 8 * 48, 0),
        (lambda x: x.sum((2, 3)), 0, 63 * 3),
        (lambda x: x[0] @ x[0].transpose(1, 2), 3 * 64 * 8, 3 * 64 * 7),
    ],
)
def test_pooling_and_products(function, mults, adds):
    (count,) = strict(Call(function)).values()
    assert costs(count) == (0, adds, mults)


def test_ternary_filters_cost_a_product_per_side_and_exact_trees():
    conv = nn.Conv2d(8, 3, 1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[0, :5, 0, 0] = 0.5  # one side: a tree of 5
    conv.weight.data[1, :3, 0, 0] = 0.5  # both: trees of 3 and 2, and their sum
    conv.weight.data[1, 3:5, 0, 0] = -0.25
    count = strict(nn.Sequential(conv), (8, 2, 2), Settings())["0"]
    five, three, two = 2 * 16 + 17 + 18, 16 + 17, 16
    assert [tree_bits(k, 16) for k in (0, 1, 2, 3, 5)] == [0, 0, two, three, five]
    assert count.adds == 4 * (five + three + two + 32) / 32
    assert count.mults == 4 * 3 / 2
    assert (count.live_in, count.live_out, count.weights, count.nonzeros) == (5, 2, 10, 10)
    masks = (8 + 3) / 32  # channels went on both sides
    assert count.params == pytest.approx(52 / 32 + masks)  # 2 n + 32


def test_opposite_centroids_cost_one_product():
    conv = ternary(nn.Conv2d(6, 4, 3, bias=False), values=(-0.5, 0.0, 0.5))
    nonzeros = conv.weight.data.count_nonzero().item()
    assert costs(strict(nn.Sequential(conv), (6, 3, 3))["0"])[1:] == (nonzeros - 4, 4)


def test_cheapest_format():
    n, z, rows, bits = 4096, 300, 16, 16
    candidates = {
        "bitmask": bits * z + n,
        "Ternary scoring scheme 1": 2 * n + 32,
        "Ternary scoring scheme 2": n + z + 32,
        "CSR": 17 * z + 16 * (rows + 1) + 32,
        "CER": 16 * z + 32 * (rows + 1) + 32,
    }
    for z in range(0, n, 7):
        candidates["bitmask"] = bits * z + n
        candidates["Ternary scoring scheme 2"] = n + z + 32
        candidates["CSR"] = 17 * z + 16 * (rows + 1) + 32
        candidates["CER"] = 16 * z + 32 * (rows + 1) + 32
        name, params = cheapest(n, z, rows, ternary=True, settings=Settings(), whole=False)
        assert params * 32 == min(candidates.values()) == candidates[name]
    plain = Settings(formats=False)
    assert cheapest(n, 300, rows, ternary=True, settings=plain, whole=True)[0].endswith("scheme 1")
    assert cheapest(n, n, rows, ternary=False, settings=plain, whole=True) == ("dense", n / 2)


def two_layers(shift: float, padding: int = 1) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=padding, bias=False),
    ).eval()
    network[0].weight.data[1] = 0
    network[1].bias.data.fill_(shift)
    return network


def test_a_dead_filter_stays_where_its_batchnorm_makes_it_a_constant():
    kept = strict(two_layers(0.5))
    assert (kept["0"].live_out, kept["3"].live_in) == (3, 4)
    assert kept["1"].params == 3 + 1 + 0  # a bias each; of the constant channel its value
    dropped = strict(two_layers(-0.5))
    assert (dropped["0"].live_out, dropped["3"].live_in) == (3, 3)
    assert dropped["3"].mults == 3 * 9 * 5 * 64
    assert dropped["2"].mults == 3 * 64  # a constant channel needs no ReLU


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_what_is_dropped_does_not_matter(shift):
    """Weights on dropped inputs can be anything: the network computes the same."""
    network = two_layers(shift)
    image = torch.randn(2, 3, 8, 8)
    before = network(image)
    record = next(r for r in score(network, (3, 8, 8)).records if r.name == "3")
    if record.free_inputs is not None:
        network[3].weight.data[:, record.free_inputs] = 100.0
    assert torch.equal(network(image), before)
    assert (record.free_inputs is not None) == (shift <= 0)


def test_dead_channels_meet_at_a_residual_sum():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1, bias=False)
            self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.c = nn.Conv2d(4, 2, 1, bias=False)
            self.a.weight.data[[0, 1]] = 0
            self.b.weight.data[[1, 2]] = 0

        def forward(self, x):
            x = self.a(x)
            return self.c(torch.cat([self.b(x) + x, x[:, :0]], 1))

    counts = strict(Residual())
    assert (counts["b"].live_in, counts["c"].live_in) == (2, 3)
    assert counts["add"].adds == 3 * 64


def oracle(network: nn.Sequential, shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(mults, adds, live filters) of every convolution, by looking at every output element."""
    activations, found = torch.randn(5, *shape), []
    for layer in network:
        result = layer(activations)
        if isinstance(layer, nn.Conv2d):
            found.append(_elements(layer, activations, result))
        activations = result
    return found


def _elements(conv: nn.Conv2d, x: torch.Tensor, result: torch.Tensor) -> tuple[int, int, int]:
    varies = (result != result[0, :, :1, :1]).any(0).any(-1).any(-1)
    used = (x != 0).any(0).any(-1).any(-1)
    per_group = conv.in_channels // conv.groups
    filters = conv.out_channels // conv.groups
    kernel = list(itertools.product(*map(range, conv.kernel_size)))
    mults = adds = 0
    for o, _, _ in itertools.product(*map(range, result.shape[1:])):
        if not varies[o]:
            continue
        first = o // filters * per_group
        taps = [
            value
            for i in range(per_group)
            for y, z in kernel
            if used[first + i] and (value := conv.weight[o, i, y, z].item()) != 0
        ]
        values = {v for v in conv.weight.flatten().tolist() if v != 0}
        is_ternary = len(values) <= 2 and bool((conv.weight == 0).any())
        mults += len({abs(v) for v in taps}) if is_ternary else len(taps)
        adds += len(taps) - 1 + (conv.bias is not None)
    return mults, adds, int(varies.sum())


CASES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 3), "padding": (0, 2), "stride": (2, 1)},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
    {"kernel_size": 3, "groups": 2, "stride": 2, "bias": False},
    {"kernel_size": 3, "groups": 4, "padding": 1, "bias": False},
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("is_ternary", [False, True])
def test_against_every_output_element(case, is_ternary):
    torch.manual_seed(case)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 8, **CASES[case])
    ).eval()
    for layer in network[::2]:
        if is_ternary:
            ternary(layer, seed=case)
        layer.weight.data[torch.rand(layer.weight.shape) < 0.5] = 0
    network[0].weight.data[2] = 0  # a dead filter, hence a dead input
    network[2].weight.data[5] = 0
    network[2].weight.data[:, -1] = 0 if CASES[case].get("groups", 1) == 1 else 1.0
    counts = strict(network, (3, 5, 6))
    found = [(counts[n].mults, counts[n].adds, counts[n].live_out) for n in ("0", "2")]
    if CASES[case].get("groups", 1) == 1:
        network[0].weight.data[3] = 0  # nothing reads it, so that its weights do not matter
    with torch.no_grad():
        assert found == oracle(network, (3, 5, 6))


def test_shared_layers_are_stored_once_and_computed_twice():
    conv = nn.Conv2d(3, 3, 1, bias=False)
    counts = strict(nn.Sequential(conv, nn.ReLU(), conv))
    assert [counts[n].params for n in ("0", "0#2")] == [9, 0]
    assert counts["0#2"].mults == counts["0"].mults == 9 * 64
    assert conv.weight.device.type == "cpu"  # as it was


def test_a_tied_weight_is_stored_once():
    network = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    network[1].weight = network[0].weight
    counts = strict(network)
    assert [counts[n].params for n in ("0", "0#2")] == [9, 0]
    assert network[1].weight is network[0].weight


def test_constants_become_a_bias_where_no_border_tells():
    """A dead filter with a bias is a constant; a pointwise layer takes its share into its own."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False), nn.ReLU())
    network[0].weight.data[1] = 0
    counts = strict(network)
    assert (counts["1"].live_in, counts["1"].mults) == (3, 3 * 5 * 64)
    assert counts["1"].adds == (3 - 1 + 1) * 5 * 64  # with a bias, which it did not have
    network[1] = nn.Conv2d(4, 5, 3, padding=1, bias=False)
    assert strict(network)["1"].live_in == 4


def test_what_nothing_reads_is_not_computed():
    """A depthwise filter without weights makes the filter before it useless."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 2, 1, bias=False),
    )
    network[1].weight.data[2] = 0
    counts = strict(network)
    assert [counts[n].live_out for n in "012"] == [3, 3, 2]
    assert counts["0"].mults == 3 * 3 * 64


def test_a_stored_vector_counts():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.randn(3, 1, 1))

        def forward(self, x):
            return x * self.factor

    assert [costs(c) for c in strict(Scaled()).values()] == [(3, 0, 192)]


def test_energy():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    outputs = 4 * 64
    picojoule = {
        16: 3 * outputs * 1.1 + 2 * outputs * 0.9,
        32: 3 * outputs * 3.7 + 2 * outputs * 0.9,
    }
    for settings, bits in ((Settings(), 16), (FP32, 32)):
        total = score(network, (3, 8, 8), settings=settings).totals["strict"]
        assert total.energy_uj == pytest.approx(picojoule[bits] * 1e-6)
        assert math.isclose(total.score, total.params / 36.5e6 + total.ops / 10.49e9)


def test_adaptive_pooling_with_overlapping_windows():
    (count,) = strict(Call(lambda x: F.adaptive_avg_pool2d(x, (3, 8))), (2, 7, 8)).values()
    covered = 3 + 3 + 3  # rows 0-2, 2-4, 4-6
    assert costs(count) == pytest.approx((0, 2 * 8 * (covered - 3), 2 * 8 * 3))
