"""Thin networks: the same function with fewer channels, rule by rule and network by network."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ACTIVATIONS,
    call,
    randomize,
    save_network,
    ternary_micronet,
    unpack,
    with_activations,
)
from torch import nn
from torchvision.ops import SqueezeExcitation

import run_quantization
import run_scoring
from data import DATASETS, load_data
from model_compound_scaling.checkpoints.atomic_save import write_file
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import (
    load_network,
    network_content,
    read_checkpoint,
)
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build, skeleton
from model_compound_scaling.networks.cifar_resnet import OptionA
from model_compound_scaling.networks.narrowing import describe, narrowed
from model_compound_scaling.networks.quantizers import quantize_inputs, quantizers
from model_compound_scaling.networks.registry import NetworkSpec, default_spec, table_row
from model_scoring.counting.scoring import score
from model_scoring.dead_channels import removal as thin_module
from model_scoring.dead_channels.removal import thin
from model_scoring.export.output_files import checkpoint_bytes
from model_scoring.export.thin_comparison import multiply_accumulates


class Graph(nn.Module):
    """Layers, and a function of them and the image."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


GUARD = thin_module._same_function


@pytest.fixture(autouse=True)
def analysis_alone(monkeypatch):
    """Without the comparison at the end of `thin`, which would hide its mistakes."""
    monkeypatch.setattr(thin_module, "_same_function", lambda *_: True)
    torch.manual_seed(0)


@torch.no_grad()
def thinned(network: nn.Module, shape=(3, 8, 8), *, exact: float = 1e-5) -> nn.Module:
    """The thin network, after its logits have been compared on images with large borders."""
    untouched = copy.deepcopy(network.state_dict())
    result = thin(network, shape).network
    assert all(torch.equal(v, untouched[k]) for k, v in network.state_dict().items())
    images = 3 * torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)) + 1
    expected, found = network(images), result(images)
    assert (expected - found).abs().max() <= exact * expected.abs().max().clamp(min=1e-3)
    return result


def conv(c_in, c_out, kernel=3, **more):
    return nn.Conv2d(c_in, c_out, kernel, **{"padding": kernel // 2, "bias": False, **more})


@torch.no_grad()
def silence(layer: nn.Module, norm: nn.BatchNorm2d, *channels: int, value: float = -1.0) -> None:
    """Filters without weights, whose BatchNorm gives `value` everywhere."""
    for c in channels:
        layer.weight[c] = 0
        norm.running_mean[c] *= value  # an exact 0 only without a mean
        scale = norm.weight[c] / (norm.running_var[c] + norm.eps) ** 0.5
        norm.bias[c] = norm.running_mean[c] * scale + value


def chain(*, kernel=3, bias=False, norm=True, relu=True) -> Graph:
    layers = {"a": conv(3, 6), "n": nn.BatchNorm2d(6), "b": conv(6, 5, kernel, bias=bias)}
    if norm:
        layers["m"] = nn.BatchNorm2d(5)

    def run(s, x):
        x = s.n(s.a(x))
        x = s.b(F.relu(x) if relu else x)
        return s.m(x) if norm else x

    return randomize(Graph(run, **layers))


def test_a_filter_that_relu_makes_zero_goes_with_its_batchnorm_and_its_reader():
    network = chain()
    silence(network.a, network.n, 1, 4)
    found = thinned(network)
    assert describe(network, found) == {
        "a": {"out_channels": 4},
        "n": {"num_features": 4},
        "b": {"in_channels": 4},
    }
    kept = [0, 2, 3, 5]
    assert torch.equal(found.a.weight, network.a.weight[kept])
    assert torch.equal(found.b.weight, network.b.weight[:, kept])
    assert torch.equal(found.m.running_mean, network.m.running_mean)


def test_a_constant_that_zero_padding_tells_from_the_border_stays():
    network = chain()
    silence(network.a, network.n, 2, value=0.5)
    assert not describe(network, thinned(network))
    network = chain(kernel=3)
    network.b.padding_mode = network.b._padding_mode = "replicate"
    network.b._reversed_padding_repeated_twice = (1, 1, 1, 1)
    silence(network.a, network.n, 2, value=0.5)
    assert describe(network, thinned(network))["b"] == {"in_channels": 5}


@pytest.mark.parametrize(
    ("options", "narrow"),
    [
        ({}, True),
        ({"padding": 1}, False),
        ({"padding": 1, "count_include_pad": False}, False),  # exact, but not looked for
        ({"divisor_override": 4}, False),
    ],
)
def test_averages_that_depend_on_the_border_are_no_constant(options, narrow):
    layers = {"a": conv(3, 6, bias=True), "b": conv(6, 5, 1), "pool": nn.AvgPool2d(3, 1, **options)}
    for average in (lambda s, x: s.pool(x), lambda s, x: F.avg_pool2d(x, 3, 1, **options)):
        network = randomize(Graph(lambda s, x, f=average: s.b(f(s, s.a(x))), **layers))
        with torch.no_grad():
            network.a.weight[2], network.a.bias[2] = 0, 0.5
        assert bool(describe(network, thinned(network))) == narrow


def test_a_layer_that_runs_twice_takes_no_constants():
    layers = {"a": conv(3, 6, bias=True), "d": conv(3, 6, bias=True), "b": conv(6, 5, 1)}
    network = randomize(Graph(lambda s, x: s.b(s.a(x)) + 2 * s.b(s.d(x)), **layers))
    with torch.no_grad():
        network.a.weight[2], network.d.weight[2] = 0, 0
    assert not describe(network, thinned(network))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_constant_folds_where_nothing_is_padded(norm, bias):
    network = chain(kernel=1, norm=norm, bias=bias)
    values = torch.tensor([-0.5, 0.0, 0.25])
    network.b.weight.data = values[torch.randint(3, network.b.weight.shape)]
    silence(network.a, network.n, 0, value=0.75)
    found = thinned(network)
    assert found.b.weight.shape == (5, 5, 1, 1)
    assert set(found.b.weight.unique().tolist()) <= set(values.tolist())
    shift = 0.75 * network.b.weight[:, 0, 0, 0]
    if bias:
        moved = found.b.bias - network.b.bias
    elif norm:
        assert found.b.bias is None
        moved = network.m.running_mean - found.m.running_mean
    else:
        moved = found.b.bias
    torch.testing.assert_close(moved.detach(), shift.detach(), atol=1e-6, rtol=0)


def test_a_batchnorm_without_scale_kills_a_live_filter():
    network = chain(kernel=1)
    with torch.no_grad():
        network.n.weight[3] = 0
    assert describe(network, thinned(network))["a"] == {"out_channels": 5}


def test_what_nothing_reads_goes_and_takes_along_what_only_it_read():
    """Three layers: each end is seen only when the one after it is gone."""
    convs = {name: conv(3 if name == "a" else 6, 6) for name in "abcd"}
    network = Graph(lambda s, x: s.d(F.silu(s.c(F.silu(s.b(F.silu(s.a(x))))))), **convs).eval()
    with torch.no_grad():
        network.d.weight[:, 0] = 0
        network.c.weight[1:, 2] = 0  # only filter 0 of c reads filter 2 of b
        network.b.weight[:2, 4] = 0
        network.b.weight[3:, 4] = 0  # only filter 2 of b reads filter 4 of a
    result = thin(network, (3, 8, 8))
    assert result.passes == 3
    assert describe(network, thinned(network)) == {
        "a": {"out_channels": 5},
        "b": {"in_channels": 5, "out_channels": 5},
        "c": {"in_channels": 5, "out_channels": 5},
        "d": {"in_channels": 5},
    }


def test_a_layer_keeps_at_least_one_channel():
    network = chain()
    silence(network.a, network.n, *range(6))
    assert thinned(network).a.out_channels == 1


def residual() -> Graph:
    layers = {"a": conv(3, 6), "b": conv(6, 6), "n": nn.BatchNorm2d(6), "c": conv(6, 4)}
    return randomize(Graph(lambda s, x: s.c(F.relu((y := s.a(x)) + s.n(s.b(y)))), **layers))


def test_residual_widths_stay_where_one_side_is_alive():
    network = residual()
    silence(network.b, network.n, 2, value=0.0)
    assert not describe(network, thinned(network))
    with torch.no_grad():
        network.a.weight[2] = 0
    found = thinned(network)
    assert (found.a.out_channels, found.b.in_channels, found.b.out_channels) == (5, 5, 5)


@pytest.mark.parametrize(
    "head",
    [
        lambda s, x: s.f(F.adaptive_avg_pool2d(x, 4).view(x.size(0), -1)),
        lambda s, x: s.f(torch.flatten(F.avg_pool2d(x, 2), 1)),
        lambda s, x: s.f(F.max_pool2d(x, 2).reshape(x.shape[0], -1)) * x.shape[2:][0],
    ],
)
def test_sizes_of_pixels_and_batches_read_no_channels(head):
    layers = {"a": conv(3, 6), "f": nn.Linear(96, 5)}
    network = randomize(Graph(lambda s, x: head(s, F.relu(s.a(x))), **layers))
    with torch.no_grad():
        network.a.weight[[0, 2]] = 0
    assert thinned(network).f.in_features == 64


def test_residual_channels_that_nothing_reads_go():
    network = residual()
    with torch.no_grad():
        network.c.weight[:, 5] = 0
        network.b.weight[:, 5] = 0
    found = thinned(network)
    assert (found.a.out_channels, found.n.num_features, found.c.in_channels) == (5, 5, 5)


def test_depthwise_and_squeeze_excitation():
    layers = {
        "a": conv(3, 6, 1),
        "n": nn.BatchNorm2d(6),
        "d": conv(6, 6, 3, groups=6),
        "m": nn.BatchNorm2d(6),
        "se": SqueezeExcitation(6, 3),
        "p": conv(6, 4, 1),
    }
    network = Graph(lambda s, x: s.p(s.se(F.silu(s.m(s.d(F.silu(s.n(s.a(x)))))))), **layers)
    randomize(network)
    silence(network.d, network.m, 1, value=0.0)
    with torch.no_grad():
        network.p.weight[:, 4] = 0
        network.se.fc1.weight[:, 4] = 0
    widths = describe(network, thinned(network))
    narrow = {"in_channels": 4, "out_channels": 4, "groups": 4}
    assert (widths["a"], widths["d"]) == ({"out_channels": 4}, narrow)
    assert widths["se.fc1"] == {"in_channels": 4} and widths["se.fc2"] == {"out_channels": 4}
    silence(network.d, network.m, 2, value=1.0)  # times an attention that depends on the image
    assert describe(network, thinned(network)) == widths


def test_groups_lose_equally_many():
    layers = {"a": conv(3, 8), "g": conv(8, 8, groups=2), "c": conv(8, 4)}
    network = Graph(lambda s, x: s.c(F.relu(s.g(F.relu(s.a(x))))), **layers).eval()
    with torch.no_grad():
        network.a.weight[[0, 1, 5]] = 0  # two of the first group, one of the second
        network.g.weight[[2, 6, 7]] = 0  # one of the first group, two of the second
    widths = describe(network, thinned(network))
    assert widths["g"] == {"in_channels": 6, "out_channels": 6}
    assert (widths["a"], widths["c"]) == ({"out_channels": 6}, {"in_channels": 6})


def test_concatenation_and_flattening():
    layers = {"a": conv(3, 4), "b": conv(3, 5), "c": conv(9, 6), "f": nn.Linear(6 * 16, 7)}

    def run(s, x):
        x = s.c(torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], 1))
        return s.f(F.max_pool2d(F.relu(x), 2).flatten(1))

    network = randomize(Graph(run, **layers))
    with torch.no_grad():
        network.a.weight[1], network.b.weight[3], network.c.weight[2] = 0, 0, 0
        network.f.weight[:, 80:96] = 0  # all pixels of the last channel
        network.f.weight[:, 48:63] = 0  # all but one
    widths = describe(network, thinned(network))
    assert widths == {
        "a": {"out_channels": 3},
        "b": {"out_channels": 4},
        "c": {"in_channels": 7, "out_channels": 4},
        "f": {"in_features": 64, "bias": 1} if network.f.bias is None else {"in_features": 64},
    }


def test_option_a_shortcut_narrows_on_either_side():
    layers = {"a": conv(3, 4), "s": OptionA(stride=2, before=2, after=2)}
    layers |= {"b": conv(4, 8, stride=2), "c": conv(8, 5)}
    network = Graph(lambda s, x: s.c(F.relu(s.b(y := F.relu(s.a(x))) + s.s(y))), **layers).eval()
    with torch.no_grad():
        network.b.weight[[0, 3, 6, 7]] = 0  # channel 3 also carries channel 1 of the input
    widths = describe(network, thinned(network))
    assert widths == {
        "b": {"out_channels": 5},
        "s": {"before": 1, "after": 0},
        "c": {"in_channels": 5},
    }
    with torch.no_grad():
        network.a.weight[1] = 0
    assert describe(network, thinned(network))["a"] == {"out_channels": 3}


def test_in_place_operations_change_what_others_read():
    layers = {"a": conv(3, 6), "n": nn.BatchNorm2d(6), "b": conv(6, 4, 1), "c": conv(6, 4, 1)}

    def run(s, x):
        y = s.n(s.a(x))
        z = s.b(y)
        return z + s.c(F.relu(y, inplace=True)) + s.c2(y)

    network = randomize(Graph(run, c2=conv(6, 4, 1), **layers))
    silence(network.a, network.n, 1, value=-2.0)  # -2 for b, 0 for c and c2
    thinned(network)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.b(F.relu(s.b(s.a(x)))),  # a layer that runs twice
        lambda s, x: s.b(F.relu(s.a(x)).view(-1, 3, 2, 8, 8).flatten(1, 2)),
        lambda s, x: s.b(F.relu(y := s.a(x))) / y.size(1),
        lambda s, x: s.b(F.relu(y := s.a(x))) * y.shape[:2][1],
        lambda s, x: s.b(F.relu(y := s.a(x))) + y.shape[1],
        lambda s, x: s.b(F.relu(s.a(x)).softmax(1)),
        lambda s, x: s.b(F.relu(s.a(x)).flip(1)),
        lambda s, x: s.b(F.relu(s.a(x)) if x.sum() > 0 else s.a(x)),
        lambda s, x: s.b(F.relu(s.a(x))) + s.a.weight.sum(),
        lambda s, x: s.b(F.relu(F.conv2d(x, s.a.weight, padding=1))),
    ],
)
def test_what_is_not_understood_is_kept(function):
    layers = {"a": conv(6, 6), "b": conv(6, 6)}
    network = Graph(function, **layers).eval()
    with torch.no_grad():
        network.a.weight[[1, 4]] = 0
    found = thinned(network, (6, 8, 8))
    assert found.a.weight.shape[0] == 6


def test_code_that_counts_on_widths_is_found_by_comparing(monkeypatch):
    monkeypatch.setattr(thin_module, "_same_function", GUARD)
    layers = {"a": conv(3, 6), "b": conv(6, 6)}
    network = Graph(lambda s, x: s.b(F.relu(s.a(x)) * s.a.out_channels), **layers).eval()
    with torch.no_grad():
        network.a.weight[2] = 0
    result = thin(network, (3, 8, 8))
    assert result.network is network and "counts on the widths" in result.note


@torch.no_grad()
def kill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics; many filters without weights and many inputs that nothing reads."""
    generator = torch.Generator().manual_seed(seed)

    def chance(count: int, share: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) < share

    randomize(network, seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight[chance(len(module.weight), 0.4)] = 0
            if module.weight.shape[1] > 3:
                module.weight[:, chance(module.weight.shape[1], 0.15)] = 0
    return network


SMALL = {"blocks": [1, 1, 1], "channels": [16, 24, 32], "stem": 16}
FAMILIES = [
    NetworkSpec("cifar_micronet", 10, SMALL),
    NetworkSpec(
        "image_micronet", 10, SMALL | {"blocks": [1] * 7, "channels": [16] * 7, "head": 64}
    ),
    NetworkSpec("resnet20", 10),
    NetworkSpec("resnet18", 10),
    NetworkSpec("resnet50", 10),
    NetworkSpec("efficientnet-b0", 10, {"origin": "tf"}),
    NetworkSpec("lenet-5", 10),
    *(
        NetworkSpec(f"torchvision:{name}", 10)
        for name in (
            *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet"),
            *("shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny"),
        )
    ),
]
WITHOUT_RULES = {"torchvision:convnext_tiny"}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda spec: spec.model)
def family(request):
    """A network with many dead channels, its image's shape, and the thin one; made once."""
    spec = request.param
    row = table_row(spec.model)
    shape = (row.channels, *[min(64, row.image_size)] * 2)
    torch.manual_seed(0)
    network = kill(build(spec))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(thin_module, "_same_function", lambda *_: True)
        return spec, network, shape, thinned(network, shape)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_networks_with_many_dead_channels_keep_their_logits(family, tmp_path):
    spec, network, (channels, size, _), result = family
    parameters = [sum(p.numel() for p in n.parameters()) for n in (network, result)]
    if spec.model in WITHOUT_RULES:
        assert parameters[0] == parameters[1]
    else:
        assert parameters[1] < 0.9 * parameters[0]
    path = tmp_path / "thin.pt"
    path.write_bytes(checkpoint_bytes(result, spec, {"image_size": size}))
    checkpoint = read_checkpoint(path)
    again = load_network(checkpoint, network_spec(checkpoint)).eval()
    assert again.state_dict().keys() == result.state_dict().keys()
    image = torch.randn(1, channels, size, size)
    with torch.no_grad():
        assert torch.equal(again(image), result(image))
    counters = [k for k in again.state_dict() if k.endswith("num_batches_tracked")]
    assert all(again.state_dict()[k].dtype == torch.int64 for k in counters)
    assert not thin(again, (channels, size, size)).passes


def test_half_of_a_group_of_ties_is_never_taken():
    """Seeds of a network whose parts are split, shuffled and joined again."""
    for seed in range(4):
        network = kill(build(NetworkSpec("torchvision:shufflenet_v2_x0_5", 10)), seed)
        thinned(network, (3, 64, 64))


def dead_filters(model: str = "resnet20") -> nn.Module:
    """Ternary blocks with dead filters inside; all other channels alive on every path."""
    network = randomize(build(NetworkSpec(model, 10)))
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-0.5, 0.0, 0.25])
    for name, module in network.named_modules():
        if ".conv" in name:
            shape = module.weight.shape
            module.weight.data = values[torch.randint(3, shape, generator=generator)]
        if name.endswith("conv1") and "." in name:
            norm = network.get_submodule(name.replace("conv1", "bn1"))
            silence(module, norm, 1, 3, 10)
    return network


def test_strict_scoring_claims_what_the_thin_network_is():
    """Same operations; parameters fewer by the marks that name dropped channels. A dead filter
    that ReLU ends is a constant before it, which the rules store: 16 bits each."""
    network = dead_filters()
    found = thinned(network, (3, 32, 32))
    before, after = (score(n, (3, 32, 32), family="resnet") for n in (network, found))
    one, other = before.totals["strict"], after.totals["strict"]
    assert (one.adds, one.mults) == (other.adds, other.mults)
    blocks = [16] * 3 + [32] * 3 + [64] * 3
    marks = sum(2 * width for width in blocks) / 32  # outputs of conv1, inputs of conv2
    constants = 3 * len(blocks) * 16 / 32
    assert one.params - other.params == pytest.approx(marks + constants)
    assert multiply_accumulates(after) < multiply_accumulates(before)
    assert {r.weights.ternary for r in after.records if ".conv" in r.name} == {True}


def test_strict_scoring_knows_the_operations_of_the_thin_network(family):
    """Whatever is dead, constant, or computed and not read; the thin one stores fewer values."""
    _, network, shape, found = family
    one, other = (score(n, shape, rules=("strict",)).totals["strict"] for n in (network, found))
    assert other.params <= one.params
    assert (other.adds, other.mults) == pytest.approx((one.adds, one.mults), rel=1e-9)


def content_with(widths: object) -> dict:
    network, spec = build(NetworkSpec("resnet20", 10)), NetworkSpec("resnet20", 10)
    content = network_content(network, spec, {})
    content["network"]["widths"] = widths
    return content


@pytest.mark.parametrize(
    "widths",
    [
        5,
        ["conv1"],
        {"conv7": {"out_channels": 3}},
        {"layer1": {"out_channels": 3}},
        {3: {"out_channels": 3}},
        {"conv1": 3},
        {"conv1": {"out_channels": 0}},
        {"conv1": {"out_channels": 17}},
        {"conv1": {"out_channels": 2.5}},
        {"conv1": {"out_channels": True}},
        {"conv1": {"kernel_size": 1}},
        {"conv1": {"groups": 2}},
        {"linear": {"bias": 0}},
        {"layer2.0.shortcut": {"before": -1}},
    ],
)
def test_damaged_descriptions_are_named(tmp_path, widths):
    torch.save(content_with(widths), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="widths"):
        network_spec(read_checkpoint(tmp_path / "net.pt"))


def test_widths_that_do_not_fit_together(tmp_path, capsys):
    widths = {"layer1.0.conv1": {"out_channels": 15}}
    spec = NetworkSpec("resnet20", 10, {}, widths)
    save_network(tmp_path / "net.pt", build(spec), spec)
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"net\.pt: the widths .* do not fit together"):
        load_network(checkpoint, network_spec(checkpoint))
    assert run_scoring.main(["--t-model", str(tmp_path / "net.pt")]) == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_full_networks_are_described_as_before():
    assert "widths" not in NetworkSpec("resnet20", 10).content()
    spec = NetworkSpec("resnet20", 10, {}, {"linear": {"in_features": 60}})
    assert spec.content()["widths"] == {"linear": {"in_features": 60}}
    assert narrowed(build(NetworkSpec("resnet20", 10)), spec.widths).linear.in_features == 60


@pytest.fixture
def checkpoint(tmp_path):
    spec = NetworkSpec("resnet20", 10)
    return save_network(tmp_path / "net.pt", dead_filters(), spec)


def test_the_command_line_writes_a_checkpoint_for_all_stages(checkpoint, tmp_path, capsys):
    target, report = tmp_path / "deep" / "thin.pt", tmp_path / "thin.json"
    assert run_scoring.main(["--t-model", str(checkpoint), "--thin", str(target)]) == 0
    out = capsys.readouterr().out
    for words in ("parameters ", "multiply-accumulates", "milliseconds per image", "batch 1"):
        assert words in out
    assert run_scoring.main(["--t-model", str(target), "--json", str(report)]) == 0
    layers = {layer["name"]: layer for layer in json.loads(report.read_text())["layers"]}
    assert layers["layer1.0.conv1"]["out_shape"] == [1, 13, 32, 32]
    assert [file.name for file in target.parent.iterdir()] == ["thin.pt"]
    found = read_checkpoint(target)
    assert {"dataset": "Shapes", "image_size": 32}.items() <= found.data.items()
    assert found.data["mean"] == list(DATASETS["Shapes"].stats[0])  # what the data set says
    assert network_spec(found, model="resnet20") == found.network


def test_a_thin_network_can_be_quantized_and_the_run_resumed(images, tmp_path, capsys):
    spec = NetworkSpec("cifar_micronet", 2, SMALL | {"head": None})
    found = thin(kill(build(spec)), (3, 32, 32)).network
    data = {"dataset": "ImageFolder", "image_size": 32}
    (tmp_path / "thin.pt").write_bytes(checkpoint_bytes(found, spec, data))
    flags = ["--model-dict", tmp_path / "thin.pt", "--data-path", images, "--no-cuda"]
    flags += [
        "--epochs",
        1,
        "--retrain-epochs",
        1,
        "--batch-size",
        8,
        "--output",
        tmp_path / "runs",
    ]
    assert run_quantization.main([str(f) for f in flags]) == 0
    first = capsys.readouterr().out
    assert run_quantization.main([str(f) for f in flags]) == 0
    assert "resuming" in capsys.readouterr().out and "resuming" not in first
    result = read_checkpoint(tmp_path / "runs" / "Ternary_best_acc.pt")
    assert result.network.widths == read_checkpoint(tmp_path / "thin.pt").network.widths != {}
    load_network(result, network_spec(result))


def test_nothing_to_take_out_is_said(tmp_path, capsys):
    spec = NetworkSpec("lenet-5", 10)
    save_network(tmp_path / "net.pt", build(spec), spec, image_size=28)
    flags = ["--t-model", str(tmp_path / "net.pt"), "--thin", str(tmp_path / "thin.pt")]
    assert run_scoring.main(flags) == 0
    assert "unchanged: no channel is dead" in capsys.readouterr().out
    assert "widths" not in torch.load(tmp_path / "thin.pt", weights_only=True)["network"]


def test_the_checkpoint_itself_is_never_overwritten(checkpoint, capsys):
    before = checkpoint.read_bytes()
    assert run_scoring.main(["--t-model", str(checkpoint), "--thin", str(checkpoint)]) == 2
    assert "name another output file" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


def test_an_older_file_is_replaced_whatever_its_manifest_says(checkpoint, tmp_path):
    target = tmp_path / "best.pt"
    write_file({"state_dict": {}}, target)
    (tmp_path / "best.pt.manifest").write_text('{"bytes": 1, "sha256": ""}')
    assert run_scoring.main(["--t-model", str(checkpoint), "--thin", str(target)]) == 0
    assert read_checkpoint(target).network.widths
    assert run_scoring.main(["--t-model", str(checkpoint), "--thin", "/dev/null"]) == 0
    assert not Path("/dev/null.manifest").exists()


def test_claimed_widths_take_no_memory(tmp_path):
    """A full network of 65,536 channels would have 3e11 weights."""
    spec = NetworkSpec("cifar_micronet", 10, SMALL | {"head": None})
    network = build(spec)
    claimed = {**spec.arguments, "channels": [65536, 65536, 32], "stem": 65536}
    full = skeleton(NetworkSpec("cifar_micronet", 10, claimed))
    content = network_content(network, spec, {})
    content["network"] |= {"arguments": claimed, "widths": describe(full, network)}
    torch.save(content, tmp_path / "net.pt")
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    found = load_network(checkpoint, network_spec(checkpoint)).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(found(image), network.eval()(image))


def test_a_depth_that_contradicts_the_file(tmp_path):
    spec = NetworkSpec("cifar_micronet", 10, SMALL | {"head": None})
    network = kill(build(spec))
    found = thin(network, (3, 32, 32)).network
    (tmp_path / "net.pt").write_bytes(checkpoint_bytes(found, spec, {}))
    with pytest.raises(CheckpointError, match="leave out --model and --dw-multps"):
        network_spec(read_checkpoint(tmp_path / "net.pt"), depth_width=(2.0, 2.0))


def test_default_spec_has_full_widths():
    assert default_spec("cifar_micronet", 10).widths == {}


@torch.no_grad()
def test_released_ternary_network_on_real_images(real_files, tmp_path):
    checkpoint = read_checkpoint(real_files / "checkpoints/resnet20_ec2t_spars64.pt")
    network = load_network(checkpoint, network_spec(checkpoint)).eval()
    result = thin(network, (3, 32, 32))
    images = real_images(real_files, tmp_path)
    expected, found = network(images), result.network(images)
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
    assert sum(p.numel() for p in result.network.parameters()) == 260_480
    for name, module in result.network.named_modules():
        if ".conv" in name:
            assert len(module.weight.unique()) <= 3


def real_images(real_files, folder):
    root = unpack(real_files / "datasets/cifar10_jpeg.tar.xz", folder, 40, "/val/")
    data = load_data(
        "ImageFolder",
        data_path=root,
        image_size=32,
        normalize="imagenet",
        val_batch_size=400,
        splits=("val",),
        device=torch.device("cpu"),
    )
    return torch.cat([images for images, _ in data.val.epoch(0)])


def test_a_network_of_zeros_is_written_thin(tmp_path, capsys):
    network = build(default_spec("lenet-5", 10))
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "zeros.pt")
    thin = tmp_path / "thin.pt"
    code, out, _ = call(
        run_scoring.main, capsys, "--t-model", tmp_path / "zeros.pt", "--thin", thin
    )
    assert code == 0 and thin.exists() and " -\n" in out  # no ratio to nothing


@pytest.mark.parametrize(("value", "kept"), [(0.0, 4), (0.31, 4), (0.6, 4), (0.5, 5), (1.5, 5)])
def test_quantized_constants_fold_where_rounding_keeps_them(value, kept):
    """Steps of 1: halves could be rounded either way, and stay."""
    norm = nn.BatchNorm2d(5)
    network = Graph(
        lambda m, x: m.head(F.relu(m.norm(m.first(x))).mean((2, 3))),
        **{"first": conv(3, 5), "norm": norm, "head": nn.Linear(5, 4)},
    )
    quantize_inputs(randomize(network), {"head": "u4"})
    silence(network.first, norm, 2)
    with torch.no_grad():
        norm.running_mean[2], norm.bias[2] = 0, value
    thin_one = thinned(network)
    assert thin_one.first.out_channels == thin_one.head.in_features == kept
    assert quantizers(thin_one)["head"].step == 1


def test_quantizers_narrow_with_their_channels(tmp_path):
    network, spec = with_activations(ternary_micronet())
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith(".conv1"):
                module.weight[1:4] = 0
            elif isinstance(module, nn.BatchNorm2d) and name.endswith(".bn2"):
                module.running_mean[1:4] = 0
                module.bias[1:4] = -0.2  # which ReLU takes away
    narrow = thinned(network, (3, 16, 16))
    for name, module in narrow.named_modules():
        if name.endswith(".conv1"):
            assert module.out_channels == network.get_submodule(name).out_channels - 3, name
    path = tmp_path / "thin.pt"
    path.write_bytes(checkpoint_bytes(narrow, spec, {}))
    checkpoint = read_checkpoint(path)
    assert checkpoint.network.activations == ACTIVATIONS and checkpoint.network.widths
    images = torch.randn(2, 3, 16, 16)
    again = load_network(checkpoint, checkpoint.network).eval()
    assert torch.equal(again(images), narrow(images))
