"""The strict rules claim what the thin network is: named cases, and random networks."""

from itertools import pairwise

import pytest
import torch
from random_networks import RandomNetwork, random_network
from torch import nn

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
    expected, found = network(images), result.network(images)
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
