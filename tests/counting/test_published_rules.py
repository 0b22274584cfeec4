"""The published rules: a released checkpoint row by row, and the tables' dense networks."""

import csv
from collections import defaultdict

import pytest
import torch
from helpers import filled
from torch import nn

from model_compound_scaling.checkpoints.network_checkpoint import (
    load_network,
    read_checkpoint,
)
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec, default_spec, table_row
from model_scoring.counting.scoring import Score, score
from model_scoring.counting.settings import Settings

FP32 = Settings(32, 32, 32)


def ones(spec: NetworkSpec) -> nn.Module:
    return filled(lambda: build(spec))


def count(spec: NetworkSpec, size: int, settings: Settings = FP32) -> Score:
    row = table_row(spec.model)
    return score(ones(spec), (row.channels, size, size), family=row.family, settings=settings)


@pytest.fixture(scope="module")
def released(real_files) -> Score:
    checkpoint = read_checkpoint(real_files / "checkpoints/resnet20_ec2t_spars64.pt")
    network = load_network(checkpoint, network_spec(checkpoint))
    return score(network, (3, 32, 32), family="resnet")


def test_released_resnet20_totals(released):
    total = released.totals["published"]
    assert total.params == 11_810
    assert total.adds == 8_018_432
    assert total.mults == 476_032
    assert total.ops == 8_494_464
    assert round(100 * released.zeros, 1) == 63.9


def test_released_resnet20_row_by_row(released, real_files):
    with (real_files / "reference/resnet20_ec2t_spars64_layers.csv").open() as file:
        reference = list(csv.DictReader(file))
    layers = [
        (record, cost)
        for record, cost in zip(released.records, released.counts["published"], strict=True)
        if record.kind == "conv"
    ]
    for row, (record, cost) in zip(reference, layers, strict=True):
        filters, inputs = record.weights.counts.shape[1:]
        assert int(row["output_size"]) == record.out_shape[-1]
        assert int(row["live_in_channels"]) == cost.live_in
        assert int(row["live_out_channels"]) == cost.live_out
        assert int(row["dead_in"]) == inputs - cost.live_in
        assert int(row["dead_out"]) == filters - cost.live_out
        assert int(row["weights_after_dead_removal"]) == cost.weights
        sparsity = f"{100 * (1 - cost.nonzeros / cost.weights):.2f}"
        assert row["sparsity_percent_after_dead_removal"] == sparsity
        assert row["cheapest_format"] == cost.format
        assert float(row["scoring_params"] or cost.params) == cost.params


@pytest.mark.parametrize(
    ("model", "classes", "size", "params", "adds", "mults"),
    [
        ("resnet20", 10, 32, 269e3, 40.6e6, 40.7e6),
        ("resnet18", 1000, 224, None, 1795e6, 1797e6),
        ("cifar_micronet", 100, 32, 8.03e6, None, None),
    ],
)
def test_full_precision_figures_of_the_tables(model, classes, size, params, adds, mults):
    total = count(default_spec(model, classes), size).totals["published"]
    for expected, found in ((params, total.params), (adds, total.adds), (mults, total.mults)):
        assert expected is None or found == pytest.approx(expected, rel=2e-3)
    if model == "cifar_micronet":
        assert total.ops == pytest.approx(2487e6, rel=2e-4)


def test_efficientnet_b1_by_layer_type():
    """At 240 px; the tables' expand convolutions were counted with some inputs halved too early."""
    result = count(default_spec("efficientnet-b1", 1000), 240)
    found = defaultdict(lambda: [0.0, 0.0])
    for record, cost in zip(result.records, result.counts["published"], strict=True):
        kind = _layer_type(record.name, record.kind)
        found[kind][0] += cost.ops / 1e6
        found[kind][1] += cost.params / 1e6
    expected = {
        "stem": (26.7, 0.0009),
        "depthwise": (137.2, 0.27),
        "reduce": (5.2, 0.55),
        "expand se": (5.3, 0.57),
        "project": (575.3, 2.45),
        "head": (52.8, 0.41),
        "fc": (2.6, 1.28),
    }
    for kind, (ops, params) in expected.items():
        assert found[kind][0] == pytest.approx(ops, abs=0.05), kind
        assert found[kind][1] == pytest.approx(params, abs=0.005), kind
    assert found["expand"][1] == pytest.approx(2.23, abs=0.005)
    assert found["expand"][0] == pytest.approx(616.0, abs=0.05)  # the tables: 520.2


def _layer_type(name: str, kind: str) -> str:
    stage, inside, part = name.partition(".block.")
    if not inside:
        first = {"features.0": "stem", "features.8": "head", "avgpool": "head", "classifie": "fc"}
        return next((v for k, v in first.items() if name.startswith(k)), "sum")
    position = int(part[0]) - (0 if stage.startswith("features.1.") else 1)
    if position == 1:
        return "reduce" if kind == "swish" or "fc1" in part or "avgpool" in part else "expand se"
    return {-1: "expand", 0: "depthwise", 2: "project"}[position]


def layers(result: Score) -> dict:
    pairs = zip(result.records, result.counts["published"], strict=True)
    return {record.name: cost for record, cost in pairs}


def test_micronet_second_convolution_carries_two_biases():
    shape = scaled_shape("cifar_micronet", depth=1, width=1)
    network = ones(NetworkSpec("cifar_micronet", 10, shape))
    network.layer1[0].conv1.weight.data[3] = 0
    network.layer1[0].conv2.weight.data[[4, 5]] = 0
    found = layers(score(network, (3, 32, 32), family="micronet", settings=FP32))
    block = {name.removeprefix("layer1.0."): cost for name, cost in found.items()}
    assert (block["conv2"].live_in, block["conv2"].live_out) == (15, 14)
    assert found["layer1.1.conv1"].live_in == 14
    assert (block["bn1"].params, block["bn1"].adds) == (15, 14 * 1024)  # its inputs, its outputs
    assert (block["bn3"].params, block["bn3"].adds) == (14, 14 * 1024)
    assert (block["bn2"].params, block["relu"].mults) == (15, 15 * 1024)


def test_what_the_residual_families_leave_out():
    shape = scaled_shape("cifar_micronet", depth=2 / 7, width=1)
    result = score(ones(NetworkSpec("cifar_micronet", 10, shape)), (3, 32, 32), family="micronet")
    found = layers(result)
    assert found["layer2.0.shortcut.0"].params == found["layer2.0.shortcut.1"].params == 0
    assert [n for n, c in found.items() if n.endswith("add") and c.adds] == ["layer3.1.add"]
    assert found["avgpool"].ops == found["relu#2"].ops == 0
    assert found["relu"].mults == 16 * 1024 / 2
    strict = dict(zip([r.name for r in result.records], result.counts["strict"], strict=True))
    assert all(strict[name].ops > 0 for name in found if "dropout" not in name)


def test_average_filter_and_tree_adder():
    conv = nn.Conv2d(4, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, 1, 1, 1], [1, -1, 0, 0]]).reshape(2, 4, 1, 1)
    network = nn.Sequential(conv)
    cost = layers(score(network, (4, 3, 3)))["0"]  # v = 3: a tree of 2 operands
    assert (cost.adds, cost.mults) == (18 * 16 / 32, 18 * 2 / 2)
    flat = Settings(tree_adder=False)
    assert layers(score(network, (4, 3, 3), settings=flat))["0"].adds == 18 * 2


@pytest.mark.parametrize("rules", ["published", "strict"])
def test_a_layer_of_zeros_costs_nothing(rules):
    conv = nn.Conv2d(4, 2, 3, bias=False)
    conv.weight.data.zero_()
    assert score(nn.Sequential(conv), (4, 5, 5)).totals[rules].ops == 0
    assert score(nn.Sequential(conv), (4, 5, 5)).totals[rules].params == 0


def test_weights_below_every_precision_count_as_zeros():
    """A subnormal value is flushed by hardware, and 16 bit hold none: it is no weight."""
    totals = []
    for small in (1e-42, -1e-39, 0.0):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 8, 3, bias=False)
        choice = torch.randint(3, conv.weight.shape)
        conv.weight.data = torch.tensor([-0.5, 0.0, small])[choice]
        result = score(nn.Sequential(conv), (4, 5, 5))
        totals.append((result.totals, result.zeros))
        assert result.zeros == pytest.approx(float((choice > 0).double().mean()))
        assert result.records[0].ternary
    assert totals[0] == totals[1] == totals[2]
