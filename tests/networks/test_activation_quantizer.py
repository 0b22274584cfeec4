"""Quantized activations: values, and gradients against closed forms and finite differences."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from model_compound_scaling.networks.narrowing import WidthsError
from model_compound_scaling.networks.quantizers import (
    ActivationQuantizer,
    code_range,
    describe,
    first_step,
    quantize,
    quantize_inputs,
    quantizers,
)

CASES = [(bits, signed) for bits in (2, 4, 8) for signed in (False, True)]


@pytest.mark.parametrize(("bits", "signed"), CASES)
def test_values_are_the_nearest_multiples_within_the_range(bits, signed):
    quantizer = ActivationQuantizer(bits, signed)
    quantizer.step.data.fill_(0.25)
    low, high = code_range(bits, signed=signed)
    assert high - low + 1 == 2**bits and (low < 0) == signed
    codes = torch.arange(low, high + 1) * 0.25
    x = torch.linspace(1.5 * codes[0] - 1, 1.5 * codes[-1] + 1, 999)
    found = quantizer(x)
    assert set(found.tolist()) == set(codes.tolist())
    nearest = (x[:, None] - codes).abs().min(1).values
    assert torch.equal((x - found).abs(), nearest)
    assert torch.equal(found, quantize(x, quantizer.step.detach(), low, high))  # without gradients
    halves = quantizer(torch.tensor([0.125, 0.375])).tolist()
    assert halves == [0.0, min(0.5, 0.25 * high)]  # to even


def soft(x: Tensor, step: Tensor, fixed: Tensor, low: int, high: int) -> Tensor:
    """The function that LSQ differentiates: rounding adds what it adds at `fixed`, whatever x and
    step do (section 2.1)."""
    scaled = (x / step).clamp(low, high)
    return (scaled + (fixed.round() - fixed)) * step


@pytest.mark.parametrize(("bits", "signed"), CASES)
def test_gradients_against_finite_differences(bits, signed):
    torch.manual_seed(bits)
    low, high = code_range(bits, signed=signed)
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = (torch.randn(3, 4, 5, dtype=torch.float64) * 0.3 * high).requires_grad_()
    weight = torch.randn(3, 4, 5, dtype=torch.float64)
    (quantize(x, step, low, high) * weight).sum().backward()
    with torch.no_grad():
        fixed, delta = (x / step).clamp(low, high), 1e-6
        ends = [(soft(x, step + d, fixed, low, high) * weight).sum() for d in (delta, -delta)]
        slope = float(ends[0] - ends[1]) / (2 * delta)
        sides = [soft(x + d, step, fixed, low, high) * weight for d in (delta, -delta)]
    assert float(step.grad) == pytest.approx(slope / math.sqrt(20 * high), rel=1e-8)
    assert torch.allclose(x.grad, (sides[0] - sides[1]) / (2 * delta), atol=1e-6)
    assert bool((x.grad == 0).any())  # some are outside


def test_the_step_begins_in_proportion_to_the_activations():
    x = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    assert float(first_step(x, 15)) == pytest.approx(2 * 1.5 / math.sqrt(15))
    assert float(first_step(torch.zeros(4), 15)) > 0
    quantizer = ActivationQuantizer(4)
    quantizer.start(x)
    assert float(quantizer.step.detach()) == pytest.approx(2 * 1.5 / math.sqrt(15))


def test_a_step_that_is_frozen_gets_no_gradient_and_a_copy_has_the_same():
    quantizer = ActivationQuantizer(3, signed=True)
    quantizer.step.data.fill_(0.7)
    other = copy.deepcopy(quantizer).requires_grad_(False)
    x = torch.randn(2, 8, requires_grad=True)
    other(x).sum().backward()
    assert other.step.grad is None and x.grad is not None
    assert torch.equal(other(x), quantizer(x))
    fresh = ActivationQuantizer(3, signed=True)
    fresh.load_state_dict(quantizer.state_dict())
    assert list(fresh.state_dict()) == ["step"] and torch.equal(fresh(x), quantizer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_of_16_bits_keep_their_type(dtype):
    quantizer = ActivationQuantizer(4)
    x = torch.rand(2, 8, dtype=dtype, requires_grad=True)
    found = quantizer(x)
    found.sum().backward()
    assert found.dtype == x.grad.dtype == dtype and quantizer.step.grad.dtype == torch.float32


def test_it_learns_the_step_of_its_data():
    """Gradient descent on the squared error ends where other steps are worse."""
    torch.manual_seed(0)
    x, quantizer = torch.randn(64, 32).relu(), ActivationQuantizer(3)
    quantizer.start(x)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)

    def error(step: Tensor) -> Tensor:
        return (quantize(x, step, 0, 7) - x).square().sum()

    for _ in range(150):
        optimizer.zero_grad()
        error(quantizer.step).backward()
        optimizer.step()
    learned = quantizer.step.detach()
    assert all(error(learned) < error(learned * factor) for factor in (0.7, 0.85, 1.2, 1.5))


@pytest.mark.parametrize("bits", [1, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 8"):
        ActivationQuantizer(bits)


def test_a_layer_takes_its_input_through_its_quantizer_and_so_do_copies():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    quantize_inputs(network, {"2": "u3"})
    (step,) = (q.step.data.fill_(0.05) for q in quantizers(network).values())
    x = torch.randn(6, 4)
    expected = network[2].weight @ quantize(network[0](x).relu(), step, 0, 7).T
    expected = expected.T + network[2].bias
    other = copy.deepcopy(network)
    assert torch.allclose(network(x), expected) and torch.equal(other(x), network(x))
    assert describe(other) == {"2": "u3"} and "2.quantizer.step" in other.state_dict()
    other[2].quantizer.step.data.fill_(0.5)
    assert not torch.equal(other(x), network(x))  # each has its own


@pytest.mark.parametrize(
    "table", [["0"], {"1": "u4"}, {"0": "u9"}, {"0": "x4"}, {"0": 4}, {"3": "u4"}, {"": "u4"}]
)
def test_a_description_of_another_network_is_refused(table):
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(WidthsError):
        quantize_inputs(network, table)
    assert not quantizers(network)
    quantize_inputs(network, {"0": "i2"})
    with pytest.raises(WidthsError):  # it has one
        quantize_inputs(network, {"0": "i2"})
