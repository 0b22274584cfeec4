"""The strict rules claim what the thin network is: named cases, and random networks."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from random_networks import RandomNetwork, random_network
from torch import nn

from model_compound_scaling.networks.quantizers import quantize_inputs, quantizers
from model_scoring.counting.scoring import Score, score
from model_scoring.counting.settings import WORD, Settings
from model_scoring.dead_channels import removal
from model_scoring.dead_channels.removal import thin

FP32 = Settings(32, 32, 32, tree_adder=False)
SHAPE = (3, 9, 9)


@pytest.fixture(autouse=True)
def analysis_alone(monkeypatch):
    """Without the comparison at the end of `thin`, which would hide its mistakes."""
    monkeypatch.setattr(removal, "_same_function", lambda *_: True)


def strict(network: nn.Module, shape=SHAPE) -> Score:
    result = score(network.eval(), shape, settings=FP32, rules=("strict",))
    assert not result.trace.unknown
    return result


def marks(result: Score) -> float:
    """Parameters that only a network needs that still has its dead channels: a bit for each channel
    of a side that loses some, and the values of constants, which a thin network keeps in its
    biases or not at all."""
    found = 0.0
    for record, count in zip(result.records, result.counts["strict"], strict=True):
        layer = record.weights is not None
        if record.constants is not None and (layer or record.folds):
            found += int((record.constants.nan_to_num(0.0) != 0).sum())
        if layer and count.live_out and count.format != "shared":
            groups, filters, inputs = record.weights.counts.shape
            sides = (groups * inputs, count.live_in), (groups * filters, count.live_out)
            found += sum(width for width, live in sides if live < width) / WORD
    return found


@torch.no_grad()
def compare(network: nn.Module, shape=SHAPE) -> int:
    """Rounds of dead channels, after logits, operations and parameters have been compared."""
    result = thin(network, shape)
    generator = torch.Generator().manual_seed(1)
    images = 3 * torch.randn(3, *shape, generator=generator) + 1
    # in float64: of what a norm makes 0 in the end, float32 leaves its own rounding only
    doubles = (copy.deepcopy(n).double() for n in (network, result.network))
    expected, found = (n(images.double()) for n in doubles)
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-2)
    before, after = strict(network, shape), strict(result.network, shape)
    one, other = before.totals["strict"], after.totals["strict"]
    assert (other.adds, other.mults) == pytest.approx((one.adds, one.mults), rel=1e-9)
    assert other.params - marks(after) == pytest.approx(one.params - marks(before), rel=1e-9)
    assert other.params <= one.params + 1e-6
    return result.passes


def test_random_networks(full):
    """Sequences, residual sums, concatenations, depthwise and grouped convolutions, shuffles,
    BatchNorms, biases, constants that matter, shared layers, products of matrices."""
    count, passes = (2000 if full else 200), 0
    for seed in range(count):
        network = random_network(seed)
        try:
            passes += compare(network) > 0
        except Exception as error:
            raise AssertionError(f"seed {seed}: {', '.join(network.names)}") from error
    assert passes > count / 2


@torch.no_grad()
def with_activations(network: RandomNetwork, seed: int) -> RandomNetwork:
    """Quantizers before all layers that are called, of other bits and steps each."""
    called, generator = {}, torch.Generator().manual_seed(seed)
    names = {m: n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    with nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: called.update({names[module]: args[0]} if module in names else {})
    ):
        network(torch.randn(2, *SHAPE, generator=generator))
    bits = torch.randint(2, 9, (len(called),), generator=generator).tolist()
    signs = ("iu"[bool((x >= 0).all())] for x in called.values())
    kinds = {n: f"{sign}{b}" for n, sign, b in zip(called, signs, bits, strict=True)}
    for name, quantizer in quantizers(quantize_inputs(network, kinds)).items():
        quantizer.start(called[name])
    return network


def test_random_networks_with_activations_of_few_bits(full):
    for seed in range(76, 700 if full else 88):
        network = with_activations(random_network(seed), seed)
        try:
            compare(network)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {', '.join(network.names)}") from error


def test_the_generator_draws_all_steps():
    drawn = {name for seed in range(200) for name in RandomNetwork(seed).names}
    assert len(drawn) == 18


def convs(*channels: int, kernel: int, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "bias": bias}
    layers = [nn.Conv2d(a, b, kernel, **options) for a, b in pairwise(channels)]
    return nn.Sequential(*layers).eval()


def by_layer(network: nn.Module, shape) -> list:
    return strict(network, shape).counts["strict"]


@torch.no_grad()
def test_a_filter_whose_only_reader_is_itself_unread():
    network = convs(3, 4, 4, 2, kernel=3)
    network[1].weight[[0, 2, 3], 2] = 0  # only filter 1 reads filter 2 of the first layer
    network[2].weight[:, 1] = 0  # and nothing reads that one
    first = by_layer(network, (3, 8, 8))[0]
    marked = 4 / WORD  # which of four filters are left
    assert (first.params - marked, first.adds, first.mults) == (81, 4992, 5184)
    assert compare(network, (3, 8, 8)) == 2


@torch.no_grad()
def test_a_filter_that_sees_only_a_constant_gives_others_no_bias():
    network = convs(3, 4, 6, kernel=1)
    network[0] = nn.Conv2d(3, 4, 1)
    network[0].weight[1] = 0  # the constant
    network[1].weight[:, 1] = 0
    network[1].weight[4] = 0
    network[1].weight[4, 1] = 1.0  # the only one that reads it, and nothing else
    second = by_layer(network, (3, 8, 8))[1]
    assert (second.adds, second.mults) == (5 * 2 * 64, 5 * 3 * 64)
    assert compare(network, (3, 8, 8)) == 1


@torch.no_grad()
def test_padding_between_a_layer_and_its_batchnorm_keeps_constants_apart():
    """At the border there is no constant that the mean could take."""
    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False), nn.ZeroPad2d(1)
    network = nn.Sequential(*layers, nn.BatchNorm2d(5)).eval()
    network[0].weight[2], network[0].bias[2] = 0, 1.5
    assert compare(network) == 1


@torch.no_grad()
def test_a_layer_whose_zeros_leave_with_dead_channels_stays_ternary():
    network = convs(3, 4, 6, 3, kernel=1)
    values = torch.tensor([0.5, -0.25])
    network[1].weight.copy_(values[torch.randint(2, (6, 4, 1, 1))])
    network[1].weight[2] = 0
    second = by_layer(network, SHAPE)[1]
    sides = sum(len(row.unique()) for row in network[1].weight[[0, 1, 3, 4, 5]])
    assert second.mults == sides * 81
    compare(network)


class Between(nn.Module):
    """Two convolutions, the first with two dead filters, and a function of what is between."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.function, self.kernel = function, torch.ones(8, 1, 3, 3) / 9
        self.scale = nn.Parameter(torch.rand(8))
        self.a.weight.data[[1, 5]] = 0

    def forward(self, x):
        return self.b(self.function(self, self.a(x))).mean((2, 3))


LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (
            lambda s, x: F.gelu(F.relu(x)),
            lambda s, x: F.gelu(F.relu(x.permute(LAST))).permute(FIRST),
        ),
        (lambda s, x: F.relu(x), lambda s, x: F.relu(x.flatten(2).mT).mT.view(x.shape)),
        (lambda s, x: F.silu(x), lambda s, x: F.silu(x.transpose(0, 1)).transpose(0, 1)),
        (
            lambda s, x: x * s.scale[:, None, None],
            lambda s, x: (x.permute(LAST) * s.scale).permute(FIRST),
        ),
        (lambda s, x: x + F.relu(x), lambda s, x: (x.mT + F.relu(x.mT)).mT),
    ],
)
@torch.no_grad()
def test_dead_channels_cost_nothing_in_whatever_dimension_they_lie(first, other):
    found = []
    for function in (first, other):
        network = Between(function).eval()
        total = strict(network, (3, 8, 8)).totals["strict"]
        found.append((total.params, total.adds, total.mults))
        compare(network, (3, 8, 8))
    assert found[0] == found[1]


TYPES = {
    "float": lambda s, x: x.float(),
    "half": lambda s, x: x.half().float(),
    "to": lambda s, x: x.to(torch.float32),
    "type_as": lambda s, x: x.type_as(torch.zeros(1)),
    "ones": lambda s, x: F.conv2d(x, torch.ones(8, 1, 1, 1, dtype=torch.float32), groups=8),
    "sum": lambda s, x: x + x.sum((2, 3), keepdim=True, dtype=torch.float32),
    "an attribute": lambda s, x: F.conv2d(x, s.kernel, groups=8),
    "autocast": lambda s, x: autocast(x),
}


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.relu(x)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_code_that_names_types_is_followed(name, last, monkeypatch):
    """With the comparison at the end, to nine digits: in float64 throughout."""
    monkeypatch.undo()
    network = Between(TYPES[name])
    network = nn.Sequential(network, Cast()) if last else network
    result = thin(network.eval(), SHAPE)
    assert "float64" not in result.note and "widths" not in result.note
    if name not in ("an attribute", "ones"):  # kernels for each channel, which nobody narrows
        assert result.passes == 1


class Cast(nn.Module):
    def forward(self, x):
        return x.float()


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_code_that_takes_no_float64_is_left_alone(error):
    def run(s, x):
        if x.dtype != torch.float32:
            raise error("float32, please")
        return x

    result = thin(Between(run).eval(), SHAPE)
    assert (result.passes, result.note) == (0, "its code does not run in float64")
