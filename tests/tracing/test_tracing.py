"""Tracing: every operation of any network is seen, and multiplications agree with PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import filled
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import REGISTRY, NetworkSpec
from model_scoring.counting import strict_rules
from model_scoring.counting.scoring import score, warnings
from model_scoring.counting.settings import Settings
from model_scoring.tracing.aten_operations import FACTORIES, OPERATIONS
from model_scoring.tracing.channel_rules import RULES
from model_scoring.tracing.forward_pass import trace
from model_scoring.tracing.layer_records import LAYERS as LAYER_WAYS

FP32 = Settings(32, 32, 32)
TORCHVISION = (
    "mobilenet_v3_large",
    "mnasnet1_0",
    "densenet121",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "regnet_y_400mf",
    "swin_t",
)
LAYERS = ("conv", "linear", "matmul")


def torch_mults(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Half of what torch.utils.flop_counter counts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, *shape, device="meta"))
    torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def layer_mults(result, rules: str = "strict") -> float:
    pairs = zip(result.records, result.counts[rules], strict=True)
    return sum(cost.mults for record, cost in pairs if record.kind in LAYERS)


def registry_spec(model: str) -> NetworkSpec:
    if REGISTRY[model].family != "micronet":
        return NetworkSpec(model, 10)
    return NetworkSpec(model, 10, scaled_shape(model, depth=1, width=1))


@pytest.mark.parametrize("model", REGISTRY)
def test_registry(model):
    row = REGISTRY[model]
    shape = (row.channels, row.image_size, row.image_size)
    network = filled(lambda: build(registry_spec(model)))
    result = score(network, shape, family=row.family, settings=FP32)
    assert not result.trace.unknown
    assert not result.trace.unused
    assert layer_mults(result) == torch_mults(network, shape)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    network = filled(lambda: torchvision.models.get_model(name, weights=None))
    result = score(network, (3, 224, 224), settings=FP32)
    assert not result.trace.unknown
    assert not result.trace.unused
    assert layer_mults(result) == torch_mults(network, (3, 224, 224))
    assert all(total.params > 0.99 * result.parameters for total in result.totals.values())


@pytest.mark.parametrize(
    ("model", "size", "mults"),
    [
        ("efficientnet-b1", 224, 569_651_680),
        ("efficientnet-b1", 240, 686_802_832),
        ("resnet18", 224, 1_814_073_344),
    ],
)
def test_known_figures(model, size, mults):
    network = filled(lambda: build(NetworkSpec(model, 1000)))
    assert layer_mults(score(network, (3, size, size), settings=FP32)) == mults


def test_tf_padding_changes_no_count():
    networks = (
        filled(lambda o=o: build(NetworkSpec("efficientnet-b0", 1000, {"origin": o})))
        for o in ("tf", "torchvision")
    )
    first, second = (layer_mults(score(n, (3, 224, 224))) for n in networks)
    assert first == second


def test_functional_calls_in_order_with_shapes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.inner = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))

        def forward(self, x):
            y = self.conv(x)
            y = F.avg_pool2d(self.inner(y) + y, 2)
            return y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1))

    records = trace(Net(), (3, 8, 10)).records
    assert [(r.name, r.kind) for r in records] == [
        ("conv", "conv"),
        ("inner.0", "batchnorm"),
        ("inner.1", "relu"),
        ("add", "add"),
        ("avgpool", "avgpool"),
        ("avgpool#2", "avgpool"),
        ("sigmoid", "sigmoid"),
        ("scale", "scale"),
    ]
    assert records[4].in_shape == (1, 4, 8, 10)
    assert records[4].out_shape == (1, 4, 4, 5)
    assert records[3].inputs == (0, 2)


def test_unknown_arithmetic_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2)

        def forward(self, x):
            return torch.erfinv(self.up(x)) + 1

    result = score(Odd(), (3, 4, 4))
    assert result.trace.unknown == {"transposed convolution": 1, "erfinv": 1}
    assert any("erfinv" in line and "transposed" in line for line in warnings(result))
    assert result.totals["strict"].params == (3 * 4 * 4 + 4) / 2  # what it stores does count


def test_writing_into_a_buffer_is_followed():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, x):
            out = torch.zeros_like(x)
            out[:, :2] = x[:, 1:]
            return self.conv(out)

    (conv,) = (r for r in trace(Shift(), (3, 4, 4)).records if r.kind == "conv")
    assert conv.weights.total == 12


def test_precomputed_values_cost_nothing():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    network = nn.Sequential(Standardised(3, 4, 1))
    (record,) = trace(network, (3, 4, 4)).records
    assert (record.name, record.kind, record.stored) == ("0", "conv", 16)


def test_a_branch_on_values_is_traced_with_values():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x.mean((2, 3)) if x.sum() <= 0 else x.amax((2, 3)))

    assert [r.kind for r in trace(Branch(), (3, 4, 4)).records if r.weights] == ["linear"]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    network = build(registry_spec("resnet20")).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    score(network, (3, 32, 32))
    assert all(m.training == training for m in network.modules())
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        F.relu6,
        F.silu,
        torch.sigmoid,
        F.hardswish,
        F.hardsigmoid,
        torch.tanh,
        F.gelu,
        F.leaky_relu,
        lambda x: x.clamp(0, 1),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3),
        lambda x: F.adaptive_max_pool2d(x, 1),
    ],
)
def test_followed_operations_keep_not_a_number(function):
    assert function(torch.full((1, 2, 16, 17), float("nan"))).isnan().all()


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.unsqueeze_(0).squeeze_(0),
        lambda x: x.transpose_(1, 2).transpose_(1, 2),
        lambda x: x * x.mean().view(1),
        lambda x: x * x.mean().expand(4, 1, 1),
    ],
)
def test_shapes_that_change_in_place_and_single_numbers(step):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return self.last(step(self.conv(x)))

    result = trace(Net(), (3, 4, 5))
    assert result.followed
    assert result.records[-1].name == "last" and result.records[-1].in_shape == (1, 4, 4, 5)


def test_batchnorm_with_a_scale_from_the_image():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.conv.weight.data.zero_()

        def forward(self, x):
            state = self.norm.running_mean, self.norm.running_var
            return F.batch_norm(self.conv(x), *state, x.mean().expand(4), self.norm.bias)

    (norm,) = [r for r in trace(Net(), (3, 4, 5)).records if r.kind == "batchnorm"]
    assert norm.constants.isnan().all()


def test_the_vocabulary_has_no_contradictions():
    assert not FACTORIES & OPERATIONS.keys()
    assert {row.way for row in OPERATIONS.values()} == {"", *RULES, *LAYER_WAYS}
    assert {row.kind for row in OPERATIONS.values()} - {None} <= strict_rules.RULES.keys()


def test_image_too_small_for_the_network():
    with pytest.raises(UserError, match="--image-size"):
        trace(torchvision.models.squeezenet1_1(), (3, 8, 8))


def test_weights_that_are_no_numbers():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    network[0].weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"0\.weight"):
        score(network, (3, 4, 4))
