"""Quantizers of any origin: the bits that a trace finds, and what they cost."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)

from model_compound_scaling.networks.quantizers import ActivationQuantizer
from model_scoring.counting.scoring import score
from model_scoring.counting.settings import Settings
from model_scoring.tracing.forward_pass import trace
from model_scoring.tracing.operation_record import tag_of

FP32 = Settings(32, 32, 32, tree_adder=False)
N = 4 * 64  # elements of what is quantized


class Net(nn.Module):
    """ReLU or not, a function of this module and the image, and a linear layer that reads it."""

    def __init__(self, function, positive=True, module=None):
        super().__init__()
        self.function, self.positive, self.module = function, positive, module
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(N, 2)
        self.register_buffer("step", torch.tensor(0.1))
        self.bound = nn.Parameter(torch.tensor(6.0))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))
        self.register_buffer("steps", torch.linspace(0.1, 0.4, 4))
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))

    def forward(self, x):
        x = self.conv(x)
        x = self.function(self, F.relu(x) if self.positive else x)
        return self.head(x.flatten(1))


def bits_of(network: nn.Module, layer: str = "head") -> int | None:
    found = trace(network.eval(), (3, 8, 8))
    assert found.followed and not found.unknown
    return next(r.activation_bits for r in found.records if r.name == layer)


def quantizer(bits: int, signed: bool = False, step: float = 0.1) -> ActivationQuantizer:
    module = ActivationQuantizer(bits, signed)
    module.step.data.fill_(step)
    return module


def _lsq(net, x, low, high):
    """As the paper's own code has it."""
    step = net.step * 0.5
    step = (net.step - step).detach() + step
    x = torch.clamp(x / step, low, high)
    return ((x.round() - x).detach() + x) * step


def _where(net, x):
    """Clamps by comparisons, as Brevitas has them."""
    x, high, low = torch.round(x / net.step), torch.tensor(7.0), torch.tensor(-8.0)
    x = torch.where(x > high, high, x)
    return torch.where(x < low, low, x) * net.step


def _pact(net, x):
    """With a learned bound."""
    levels = 15 / net.bound
    return torch.round(torch.minimum(x, net.bound).clamp_min(0) * levels) / levels


def _fake(net, x, low, high):
    return torch.fake_quantize_per_tensor_affine(x, net.step, net.zero, low, high)


Q4, Q4_SIGNED, Q3_SIGNED = quantizer(4), quantizer(4, signed=True), quantizer(3, signed=True)
Q6 = quantizer(6, step=0.3)
FORMS = {
    "module": (4, True, lambda net, x: Q4(x)),
    "signed module": (3, False, lambda net, x: Q3_SIGNED(x)),
    "signed codes that ReLU halves": (3, True, lambda net, x: Q4_SIGNED(x)),
    "fake-quantize": (8, True, lambda net, x: _fake(net, x, 0, 255)),
    "fake-quantize, signed": (8, False, lambda net, x: _fake(net, x, -128, 127)),
    "by numbers": (8, False, lambda net, x: (
        torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 255))),
    "learnable": (4, False, lambda net, x: torch._fake_quantize_learnable_per_tensor_affine(
        x, net.step.reshape(1), net.zero.reshape(1).float(), -8, 7, 1.0)),
    "lsq": (3, True, lambda net, x: _lsq(net, x, 0, 7)),
    "lsq, signed": (4, False, lambda net, x: _lsq(net, x, -8, 7)),
    "straight-through": (2, True, lambda net, x: x + (_lsq(net, x, 0, 3) - x).detach()),
    "from the other side": (2, True, lambda net, x: (_lsq(net, x, 0, 3) - x).detach() + x),
    "dorefa": (4, False, lambda net, x: torch.round(torch.clamp(x, 0, 1) * 15) / 15),
    "pact": (4, False, _pact),
    "where": (4, False, _where),
    "floor": (5, False, lambda net, x: torch.floor(x.clamp(0, 3.1) / 0.1) * 0.1),
    "decimals": (4, False, lambda net, x: x.clamp(0, 1).round(decimals=1)),
    "whole numbers": (3, False, lambda net, x: x.clamp(0, 7).int().float()),
    "signs": (2, False, lambda net, x: torch.sign(x)),
    "a comparison": (1, False, lambda net, x: (x > 0).float()),
    "two bounds": (4, False, lambda net, x: torch.minimum(torch.maximum(
        torch.round(x / 0.5), torch.tensor(-8.0)), torch.tensor(7.0)) * 0.5),
    "none": (None, True, lambda net, x: x / net.step),
    "no bounds": (None, True, lambda net, x: torch.round(x / net.step)),
    "a step for each channel": (None, True, lambda net, x: (
        torch.fake_quantize_per_channel_affine(x, net.steps, net.zeros, 1, 0, 255))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_bits_are_found_in_every_form(form):
    expected, positive, function = FORMS[form]
    assert bits_of(Net(function, positive)) == expected


@pytest.mark.parametrize("kind", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
@pytest.mark.parametrize("on", [True, False])
def test_modules_of_torch(kind, on):
    options = {"quant_min": 0, "quant_max": 127}
    module = kind(MovingAverageMinMaxObserver, **options)
    module(torch.rand(8))
    module.disable_observer()
    module.enable_fake_quant(on)
    assert bits_of(Net(lambda net, x: net.module(x), module=module)) == (7 if on else None)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda x: x.reshape(1, 2, 2, 64).transpose(1, 2).reshape(1, 4, 8, 8), 4),  # shuffle
        (lambda x: F.max_pool2d(x, 3, 1, 1), 4),
        (lambda x: F.pad(x[..., 1:, 1:], (1, 0, 1, 0)), 4),
        (lambda x: torch.cat([x[:, :2], Q6(x[:, 2:] * 7)], 1), 6),  # the widest
        (lambda x: torch.cat([x[:, :2], torch.zeros(1, 2, 8, 8)], 1), 4),
        (lambda x: x.permute(0, 2, 3, 1).flip(1), 4),
        (lambda x: F.relu(x), 4),
        (lambda x: -x, 4),
        (lambda x: x + 0.3, 5),  # three steps: codes from 0, which padding has, to 18
        (lambda x: torch.cat([x[:, :2], x[:, 2:].sigmoid()], 1), None),
        (lambda x: x + x.sigmoid(), None),
        (lambda x: x * x.sigmoid(), None),
        (lambda x: F.avg_pool2d(x, 3, 1, 1), None),
        (lambda x: F.silu(x), None),
    ],
)
def test_what_keeps_values_keeps_their_bits(way, expected):
    assert bits_of(Net(lambda net, x: way(Q4(x)))) == expected


def test_bits_hold_for_random_images():
    """As many different values at most, whatever the form."""
    torch.manual_seed(0)
    for expected, positive, function in FORMS.values():
        if expected is not None:
            x = torch.randn(4, 4, 8, 8) * torch.logspace(-2, 2, 4)[:, None, None, None]
            values = function(Net(function), F.relu(x) if positive else x)
            assert len((values / values.abs().max()).mul(1e3).round().unique()) <= 2**expected


def cost(function, *, positive=True) -> tuple[float, float]:
    """Multiplications and additions an element of what lies between ReLU and the layer."""
    result = score(Net(function, positive).eval(), (3, 8, 8), settings=FP32)
    names = ("conv", "head")
    counts = [
        c
        for r, c in zip(result.records, result.counts["strict"], strict=True)
        if r.name not in names
    ]
    counts = counts[positive:]  # ReLU
    return sum(c.mults for c in counts) / N, sum(c.adds for c in counts) / N


@pytest.mark.parametrize(
    ("form", "mults", "adds"),
    [
        ("module", 3, 0),  # scale, rounding, upper bound: ReLU was the lower one
        ("signed module", 4, 0),
        ("fake-quantize", 3, 0),
        ("fake-quantize, signed", 4, 0),
        ("by numbers", 4, 1),  # with a zero point
        ("learnable", 4, 0),
        ("lsq", 3, 0),
        ("lsq, signed", 4, 0),
        ("straight-through", 3, 0),
        ("from the other side", 3, 0),
        ("dorefa", 4, 0),
    ],
)
def test_quantizers_cost_what_they_compute(form, mults, adds):
    _, positive, function = FORMS[form]
    assert cost(function, positive=positive) == (mults, adds)


def test_a_step_is_free_only_where_layers_absorb_it():
    assert cost(lambda net, x: F.max_pool2d(Q4(x), 1))[0] == 3  # also behind a maximum
    assert cost(lambda net, x: Q4(x) + x) == (4, 1)
    assert cost(lambda net, x: _fake(net, x, 0, 255) + x) == (4, 1)


def test_a_difference_that_is_used_otherwise_costs():
    def function(net, x):
        q = _lsq(net, x, 0, 3)
        difference = q - x
        return x + difference + difference.abs()

    assert cost(function)[1] == 2  # the difference and the last sum


def test_another_difference_is_no_straight_through_estimator():
    def function(net, x):
        return x + (_lsq(net, x, 0, 3) - x.sigmoid())

    assert bits_of(Net(function)) is None
    assert cost(function)[1] == 1 + 2  # sigmoid's, the difference, the sum


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_behind_fake_quantization_are_whole_numbers(per_channel):
    observer = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric

    class Qat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 6, bias=False)
            options = {"quant_min": -8, "quant_max": 7, "dtype": torch.qint8, "qscheme": scheme}
            self.fakes = nn.ModuleList(FakeQuantize(observer, **options) for _ in range(2))

        def forward(self, x):
            x = F.conv2d(x, self.fakes[0](self.conv.weight)).mean((2, 3))
            return F.linear(x, self.fakes[1](self.fc.weight))

    network = Qat()
    network(torch.randn(1, 3, 8, 8))
    network.apply(lambda m: m.disable_observer() if isinstance(m, FakeQuantize) else None)
    records = {r.name: r for r in trace(network.eval(), (3, 8, 8)).records if r.weights}
    assert [r.weights.bits for r in records.values()] == [4, 4]
    assert [r.weights.steps for r in records.values()] == ([4, 6] if per_channel else [1, 1])


def test_a_chain_of_weights_by_hand_and_one_that_only_looks_like_it():
    class Chain(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift, self.weight = shift, nn.Parameter(torch.randn(5, 3, 3, 3))

        def forward(self, x):
            step = self.weight.abs().amax((1, 2, 3), keepdim=True) / 7
            quantized = (self.weight / step).round().clamp(-7, 7) * step
            weight = self.weight + (quantized - self.weight).detach()  # straight-through
            return F.conv2d(x, weight + self.shift)

    for shift, expected in ((0.0, (4, 5)), (0.013, (None, 0))):
        (record,) = [r for r in trace(Chain(shift), (3, 8, 8)).records if r.weights]
        assert (record.weights.bits, record.weights.steps) == expected


def test_dead_channels_go_on_through_quantizers():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        quantizer(4),
        nn.Conv2d(4, 5, 3, padding=1),
    )
    network[0].weight.data[1] = 0
    result = score(network.eval(), (3, 8, 8))
    assert [c.live_in for c in result.counts["strict"] if c.weights] == [3, 3]


STEPS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-1.3, 2.1),
    "upper": lambda x: x.clamp(max=0.9),
    "grid": lambda x: torch.round(x * 3) / 3,
    "round": torch.round,
    "floor": lambda x: torch.floor(x / 0.4) * 0.4,
    "fake": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.2, 2, 0, 15),
    "scale": lambda x: x * -0.7,
    "channels": lambda x: x * torch.tensor([1.0, -0.5, 2.0, 0.25]).reshape(4, 1, 1),
    "shift": lambda x: 0.8 - x,
    "square": lambda x: x * x,
    "mask": lambda x: x * (x > 0.2),
    "where": lambda x: torch.where(x < -0.5, torch.tensor(-0.5), x),
    "other where": lambda x: torch.where(x > 0.5, x, 0.1),
    "pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "pad": lambda x: F.pad(x[..., 1:], (1, 0), value=0.4),
    "join": lambda x: torch.cat([x[:, 2:], F.relu(x[:, :2])], 1),
    "join two": lambda x: torch.cat([x[:, 2:], torch.round(x[:, :2].clamp(0, 2) * 2) / 2], 1),
    "sum": lambda x: x + F.relu(x),
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "cast": lambda x: x.int().float(),
    "estimator": lambda x: x + (torch.round(x.clamp(-2, 2) * 2) / 2 - x).detach(),
    "half estimator": lambda x: x + (torch.sigmoid(x) - x),
    "largest": lambda x: torch.maximum(x, x.flip(1)),
    "smallest": lambda x: torch.minimum(x, torch.tensor(0.6)),
    "division": lambda x: x.div(0.3, rounding_mode="floor"),
    "in place": lambda x: x.clone().mul_(2).clamp_(0, 3),
    "written": lambda x: torch.cat([x, x[:, :1].clone().fill_(0.7)], 1)[:, 1:],
}


class Chain(nn.Module):
    """Some of these steps, one after the other; keeps what a trace knows of the result."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.names = random.Random(seed).choices(list(STEPS), k=5)

    def forward(self, x):
        for name in self.names:
            x = STEPS[name](x)
        self.known = tag_of(x).numbers
        return x


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_what_is_known_holds_for_random_chains(first):
    known = 0
    for seed in range(first, first + 50):
        chain = Chain(seed)
        trace(chain, (4, 6, 6))
        numbers, names = chain.known, chain.names
        torch.manual_seed(seed)
        values = chain(torch.randn(8, 4, 6, 6) * torch.logspace(-1, 1, 8)[:, None, None, None])
        assert numbers.low - 1e-4 <= values.min() and values.max() <= numbers.high + 1e-4, names
        if numbers.step:
            codes = values / numbers.step
            assert (codes - codes.round()).abs().max() < 1e-3, names
        if numbers.bits:
            assert len(values.mul(1e4).round().unique()) <= 2 * 2**numbers.bits, names
            known += 1
    assert known > 8
