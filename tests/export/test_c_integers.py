"""Integer layers in C. Most networks here are made of short binary fractions, so that float32 does
not round: PyTorch's logits are then met to the bit, ties of quantizers included."""

import copy
import ctypes
import shutil

import numpy as np
import pytest
import torch
from c_networks import exact_network, quantize_inputs, source_of
from helpers import few_values, randomize
from test_c_source import AARCH64, QUICK, SANITIZED, STRICT, by_program, deviation, seeds
from torch import nn

from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.quantizers import ActivationQuantizer
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.export.c_source import compiled
from model_scoring.export.c_source.compiling import MOST_DEVIATION, checked
from model_scoring.export.c_source.program.steps import Codes, listed_values

PRINTED = 1e-8  # what nine digits lose; another code would be 1e-4
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.mark.parametrize("seed", seeds(2, 60))
def test_random_networks_to_the_bit(seed, tmp_path):
    shape = (3, 11 + 5 * (seed % 5), 16) if seed % 2 else (2, 16, 8 * (1 + seed % 4))
    network = exact_network(seed, shape, 7)
    image = torch.randn(1, *shape)
    assert torch.equal(network(image).double(), copy.deepcopy(network).double()(image.double()))
    listed = [listed_values(m.weight.detach().numpy(), m.groups) for m in network.modules()
              if isinstance(m, nn.Conv2d)]  # fmt: skip
    by_lists = any(values is not None for values in listed)
    assert by_lists == ("convolve_integers(&" in source_of(network, shape).source)
    assert deviation(network, shape, tmp_path) == 0


SLOW = pytest.mark.slow
VECTORS = ("-DNET_SCALAR", *(f"-DNET_VECTOR={2**i}" for i in range(7)))


@pytest.mark.parametrize(
    "vector",
    [v if v == "-DNET_SCALAR" else pytest.param(v, marks=pytest.mark.slow) for v in VECTORS],
)
def test_strict_and_sanitized(vector, tmp_path):
    network = exact_network(12, (3, 16, 16), 8)
    assert by_program(network, (3, 16, 16), tmp_path, *STRICT, *SANITIZED, vector) <= PRINTED


@pytest.mark.slow
@AARCH64
def test_aarch64(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "aarch64-linux-gnu-gcc")
    network, flags = exact_network(12, (3, 16, 16), 8), ("-std=gnu11", "-O2", "-static")
    assert by_program(network, (3, 16, 16), tmp_path, *flags, run=["qemu-aarch64"]) <= PRINTED


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_sums_never_overflow(bits, signed):
    quantizer = ActivationQuantizer(bits, signed)
    codes = Codes(1.0, quantizer.low, quantizer.high)
    assert 0 <= quantizer.low + codes.offset <= codes.largest == quantizer.high + codes.offset < 256
    assert codes.most_terms * codes.largest < 2**16 <= (codes.most_terms + 1) * codes.largest


@pytest.mark.parametrize(("signed", "code"), [(False, 1e9), (True, -1e9)])
def test_the_largest_sums(signed, code, tmp_path):
    """Filters without a zero whose inputs are all at one end: 1, 257, 258 and 1,100 terms."""
    layers = []
    for channels in (1, 257, 258, 1100):
        conv = nn.Conv2d(channels, 2, 1, bias=False)
        conv.weight.data = torch.tensor([1.0, -0.5])[:, None, None, None].expand_as(conv.weight)
        layers.append(nn.Sequential(Constant(channels, code), ActivationQuantizer(8, signed), conv))
    network = Side(layers).eval()
    with torch.no_grad():
        expected = network(torch.zeros(1, 1, 6, 6))
    end = (255 if code > 0 else 0) - 128 * signed
    assert expected[0, 2::2].tolist() == [257.0 * end, 258.0 * end, 1100.0 * end]
    found = compiled(source_of(network, (1, 6, 6)), tmp_path, *QUICK).run(np.zeros((1, 1, 6, 6)))
    assert np.array_equal(found, expected.numpy())


class Constant(nn.Module):
    """Many channels of one number, which no exporter can know before."""

    def __init__(self, channels: int, number: float) -> None:
        super().__init__()
        self.channels, self.number = channels, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, self.channels, -1, -1) * 0 + self.number


class Side(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = [nn.functional.adaptive_max_pool2d(layer(x), 1) for layer in self]
        return torch.cat(pooled, 1).flatten(1)


def test_codes_differ_from_exact_ones_at_ties_only(tmp_path):
    """With weights and steps of any kind, the second quantizer's codes as logits."""
    torch.manual_seed(0)
    conv = few_values(nn.Conv2d(8, 6, 3, padding=1), (-0.0731, 0.0, 0.0519), part="")
    first, second = ActivationQuantizer(8, True), ActivationQuantizer(8)
    one = nn.Linear(6 * 36, 6 * 36, bias=False)
    one.weight.data = torch.eye(6 * 36)
    body = nn.Sequential(first, conv, nn.BatchNorm2d(6), nn.ReLU())
    network = randomize(nn.Sequential(*body, second, nn.Flatten(), one))
    images = torch.randn(16, 8, 6, 6)
    first.step.data, second.step.data = torch.tensor(0.0123), torch.tensor(0.00817)
    found = compiled(source_of(network, (8, 6, 6)), tmp_path, *QUICK).run(images.numpy())
    exact = copy.deepcopy(body).double()(images.double()) / second.step.double()
    codes = torch.from_numpy(found).double() / second.step.double()
    exact = exact.flatten(1)
    wrong = (codes - exact.round().clamp(0, 255)).abs() > 0.5
    assert wrong.sum() <= 3
    assert ((exact - exact.floor())[wrong] - 0.5).abs().le(1e-4).all()
    assert 100 < codes.max() < 255.5


def test_bytes_take_a_third_of_the_arena():
    floats = source_of(resnet(), (3, 32, 32)).arena_bytes
    assert source_of(quantized_resnet(), (3, 32, 32)).arena_bytes <= 0.35 * floats


def resnet() -> nn.Module:
    return randomize(few_values(build(NetworkSpec("resnet20", 10)), (-0.1, 0, 0, 0, 0.2)))


def quantized_resnet() -> nn.Module:
    """With statistics of a batch, so that logits are of an ordinary size."""
    network = resnet().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return quantize_inputs(network.eval(), (3, 32, 32), lambda: 8)


def test_ties_are_told_from_faults(tmp_path):
    """A code at a tie changes the logits by more than roundings do; what it may change them by is
    what noise in the parameters does."""
    torch.manual_seed(0)
    network = quantized_resnet()
    nearly = copy.deepcopy(network)
    for module in nearly.modules():
        if isinstance(module, nn.BatchNorm2d):
            for p in module.parameters():
                p.data *= 1 + 3e-6 * torch.randn_like(p)
    library = compiled(source_of(nearly, (3, 32, 32)), tmp_path, *QUICK)
    assert checked(network, library) > MOST_DEVIATION
    network.linear[1].bias.data[0] += 1
    with pytest.raises(UserError, match="does not compute the same"):
        checked(network, library)


class Uneven(nn.Module):
    """Divides by one step, multiplies by another: no quantizer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x / 0.5).round().clamp(0, 255) * 0.25


class OneCode(nn.Module):
    """Whatever comes, its code is 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x / 0.5).round().clamp(0, 0) * 0.5


def tiny_step() -> nn.Module:
    """1 / step is no float32."""
    quantizer = ActivationQuantizer(4)
    quantizer.step.data.fill_(1e-40)
    return quantizer


@pytest.mark.parametrize("first", [Uneven, OneCode, tiny_step])
def test_what_is_no_quantizer_is_named(first):
    with pytest.raises(UserError, match="no kernel for round"):
        source_of(nn.Sequential(first(), nn.Conv2d(1, 2, 1), nn.Flatten()).eval(), (1, 2, 2))


def test_what_the_arena_holds_does_not_matter(tmp_path):
    """Pooling leaves the columns between rows as they are: NaN, of which no pixel may know."""
    conv = few_values(nn.Conv2d(2, 3, 3, padding=1), (-1.0, 0.0, 0.5), part="")
    network = nn.Sequential(
        nn.MaxPool2d(2), ActivationQuantizer(4, True), conv, nn.Flatten()
    ).eval()
    library = compiled(source_of(network, (2, 12, 12)), tmp_path, *QUICK)
    image, found = torch.randn(1, 2, 12, 12), np.empty(108, np.float32)
    arena = ctypes.create_string_buffer(b"\xff" * library.source.arena_bytes)
    where = [ctypes.c_void_p(array.ctypes.data) for array in (image.numpy(), found)]
    assert library.library.net_run(*where, arena) == 0
    with torch.no_grad():
        assert np.allclose(found, network(image)[0], atol=1e-5)


@pytest.mark.parametrize("inputs", [65535, 65536])
@pytest.mark.parametrize("size", [1, 2])
def test_one_value_for_all_inputs(inputs, size, tmp_path):
    """The longest lists."""
    layer = nn.Conv2d(inputs // size**2, 1, size, bias=False)
    layer.weight.data.fill_(1.0)
    network = nn.Sequential(ActivationQuantizer(8), layer, nn.Flatten()).eval()
    shape = (layer.in_channels, size, size + size // 2)
    found = compiled(source_of(network, shape), tmp_path, *QUICK).run(np.ones((1, *shape)))
    assert (found == layer.weight.numel()).all()
