"""run_scoring.py: files it writes, flags it takes, mistakes it explains in one line."""

import csv
import importlib.util
import json
from functools import partial

import numpy as np
import pytest
import torch
from helpers import MICRONET, call, ternary_micronet
from torch import nn

import run_scoring
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.quantizers import first_step, quantize_inputs, quantizers
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.counting.scoring import prune_depthwise
from model_scoring.export import layer_masks
from model_scoring.inference.half_precision import InType, Rounding, half_precision

TOP_KEYS = ["model", "checkpoint", "image_size", "parameters", "zeros", "top1", "published"]
TOP_KEYS += ["strict", "layers", "environment"]
TOTAL_KEYS = ["params", "adds", "mults", "ops", "score", "energy_uj"]
LAYER_KEYS = ["name", "kind", "ternary", "in_shape", "out_shape", "weights", "nonzeros", "live_in"]
LAYER_KEYS += ["live_out", "weight_bits", "activation_bits", "accumulator_bits"]
LAYER_KEYS += ["published", "strict"]
COST_KEYS = ["format", "params", "adds", "mults"]


run = partial(call, run_scoring.main)


def test_json_has_exactly_the_documented_keys(checkpoint, tmp_path, capsys):
    target = tmp_path / "deep" / "score.json"
    code, _, _ = run(capsys, "--t-model", checkpoint, "--json", target)
    assert code == 0
    content = json.loads(target.read_text())
    assert list(content) == TOP_KEYS
    assert [list(content[rules]) for rules in ("published", "strict")] == [TOTAL_KEYS] * 2
    assert (content["model"], content["image_size"], content["top1"]) == (
        "cifar_micronet",
        32,
        None,
    )
    for layer in content["layers"]:
        assert list(layer) == LAYER_KEYS
        assert [list(layer[rules]) for rules in ("published", "strict")] == [COST_KEYS] * 2
    for rules in ("published", "strict"):
        for key in ("params", "adds", "mults"):
            parts = sum(layer[rules][key] for layer in content["layers"])
            assert content[rules][key] == pytest.approx(parts)
        assert content[rules]["ops"] == content[rules]["adds"] + content[rules]["mults"]
    assert [layer["ternary"] for layer in content["layers"]].count(True) == 6


@pytest.mark.parametrize("rules", ["published", "strict"])
def test_csv_and_console_list_the_chosen_rules(checkpoint, tmp_path, capsys, rules):
    target = tmp_path / "layers.csv"
    code, out, err = run(
        capsys, "--t-model", checkpoint, "--rules", rules, "--csv", target, "--no-cuda"
    )
    assert (code, err) == (0, "")
    with target.open() as file:
        rows = list(csv.DictReader(file))
    total = sum(float(row[f"{rules}_params"]) for row in rows)
    assert f"{total:,.0f}" in next(line for line in out.splitlines() if "scoring param" in line)
    assert all(name in out for name in ("layer3.0.conv2", "published", "strict", "energy in uJ"))


@pytest.mark.parametrize("sparse", [False, True])
def test_saved_layers_come_back_bit_for_bit(checkpoint, tmp_path, capsys, sparse):
    folder = tmp_path / "layers"
    flags = ["--save", "--output", folder] + ["--pt-sparse"] * sparse
    assert run(capsys, "--t-model", checkpoint, *flags)[0] == 0
    found = {path.stem: layer_masks.load_layer(path) for path in folder.iterdir()}
    network = ternary_micronet()
    expected = {n: m.weight for n, m in network.named_modules() if ".conv" in n}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_masks_are_packed_eight_per_byte():
    weight = torch.tensor([[0.5, 0.0, -0.25, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]])
    packed = layer_masks.pack(weight)
    assert packed["high_mask"].tolist() == [0b10010001, 0b10000000]
    assert packed["low_mask"].tolist() == [0b00100000, 0]
    assert packed["centroids"].tolist() == [-0.25, 0.5]
    assert packed["high_mask"].dtype == np.uint8


def test_plot(checkpoint, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    target = tmp_path / "chart.png"
    assert run(capsys, "--t-model", checkpoint, "--plot", target)[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = run(capsys, "--t-model", checkpoint, "--plot", tmp_path / "chart.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install matplotlib" in err


@pytest.mark.parametrize("half", ["--halfprecision", "--no-halfprecision"])
def test_eval(checkpoint, tmp_path, capsys, half):
    target = tmp_path / "score.json"
    code, out, err = run(capsys, "--t-model", checkpoint, "--eval", half, "--json", target)
    assert code == 0, err
    assert 0 <= json.loads(target.read_text())["top1"] <= 100
    assert ("16" in next(x for x in out.splitlines() if "evaluated" in x)) == (half[2] == "h")


def test_activations_of_few_bits_are_evaluated_as_they_are():
    """Also with a step that 16 bit cannot hold, as a layer whose inputs are all 0 begins with."""
    images = torch.randn(64, 4)
    layers = quantize_inputs(
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), {"0": "i8", "1": "i4"}
    )
    for step in (first_step(images * 0, 127), torch.tensor(0.01)):
        quantizers(layers)["0"].step.data = step.clone()
        found, how = half_precision(layers.eval(), images[:1])
        assert torch.equal(found(images), layers(images)) and how.startswith("float32")


def test_half_precision_is_close_and_leaves_the_network_alone():
    network = ternary_micronet()
    before = network.conv1.weight.clone()
    image = torch.randn(2, 3, 32, 32)
    expected = network.eval()(image).detach()
    candidates = [half_precision(network, image[:1])[0], Rounding(ternary_micronet())]
    for candidate in candidates:
        assert isinstance(candidate, InType | Rounding)
        assert torch.allclose(
            candidate(image).float(), expected, atol=0.05 * float(expected.abs().max())
        )
    rounded = candidates[1](image)
    assert torch.equal(rounded, rounded.half().float())
    assert torch.equal(network.conv1.weight, before)


def test_prune_threshold_zeroes_small_depthwise_weights_only():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))
    weight = network[0].weight.data.clone()
    assert prune_depthwise(network, 1) == []
    assert torch.equal(network[0].weight, weight)
    assert prune_depthwise(network, 0.5) == ["0"]
    kept = weight.abs() >= 0.5 * weight.abs().max()
    assert torch.equal(network[0].weight, torch.where(kept, weight, 0.0))
    assert bool(network[1].weight.all())


def test_a_network_that_is_not_ternary_is_counted_with_a_warning(tmp_path, capsys):
    network = build(MICRONET)
    torch.save(network.state_dict(), tmp_path / "dense.pt")
    code, out, err = run(capsys, "--t-model", tmp_path / "dense.pt")
    assert (code, err.count("\n")) == (0, 1)
    assert "conv1 432" in err and "layer1.0.conv1 2304" in err
    assert "0 of 10 layers ternary" in out


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], (16, 16, 32, True, True, None, ())),
        (["--no-halfprecision"], (32, 32, 32, True, True, None, ())),
        (["--mul-bits", "8", "--add-bits", "16"], (16, 8, 16, True, True, None, ())),
        (["--no-tree-adder", "--no-formats"], (16, 16, 32, False, False, None, ())),
        (["--accumulators", "16"], (16, 16, 32, True, True, 16, ())),
    ],
)
def test_flags_decide_the_widths(flags, settings):
    args = run_scoring.build_parser().parse_args(["--t-model", "x", *flags])
    found = run_scoring.settings(args)
    assert tuple(vars(found).values()) == settings


@pytest.mark.parametrize(
    ("content", "flags", "code", "words"),
    [
        (b"", [], 5, "net.pt"),
        (b"damaged", [], 5, "net.pt"),
        (None, [], 5, "no such file"),
        ({"conv1.weight": torch.full((8, 3, 3, 3), float("nan"))}, [], 5, "conv1.weight"),
        (b"", ["--rules", "strictt"], 2, "--rules"),
        (b"", ["--jsn", "x"], 2, "--json"),
        (b"", ["--pt-sparse"], 2, "--save"),
        (b"", ["--prune-threshold", "-1"], 2, "--prune-threshold"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, content, flags, code, words):
    path = tmp_path / "net.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    before = set(tmp_path.iterdir())
    found, out, err = run(capsys, "--t-model", path, "--json", tmp_path / "out.json", *flags)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert words in err
    assert set(tmp_path.iterdir()) == before


def test_an_image_size_the_network_cannot_take(tmp_path, capsys):
    network = build(NetworkSpec("lenet-5", 10))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    code, out, err = run(capsys, "--t-model", tmp_path / "net.pt", "--image-size", 4)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--image-size" in err


def test_files_that_cannot_be_written(checkpoint, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    first, second = tmp_path / "good.json", tmp_path / "taken" / "layers.csv"
    code, _, err = run(capsys, "--t-model", checkpoint, "--json", first, "--csv", second)
    assert (code, err.count("\n")) == (7, 1)
    assert {p.name for p in tmp_path.iterdir()} == {"net.pt", "taken"}


def test_released_checkpoint_evaluates_on_shapes_flags(real_files, capsys):
    path = real_files / "checkpoints/resnet20_ec2t_spars64.pt"
    code, out, _ = run(capsys, "--t-model", path)
    assert code == 0
    assert "11,810" in out and "8,018,432" in out and "476,032" in out


@pytest.mark.parametrize(
    "line",
    [
        "--t-model net.pt --model cifar_micronet --dataset CIFAR100 --eval --halfprecision",
        "--dataset ImageNet --data-path DIR --val-batch-size 256 --image-size 256 --model "
        "efficientnet-b1 --t-model net.pt --prune-threshold 0.01 --eval --halfprecision",
        "--no-halfprecision --t-model net.pt --image-size 200 --no-cuda",
        "--t-model net.pt --dw-multps 1.4 1.2 --phi 3.5 --mul-bits 8 --add-bits 16 --save "
        "--pt-sparse --workers 2 --seed 3 --cuda --slurm-save DIR --no-eval --rules strict",
    ],
)
def test_command_lines_in_use(line):
    args = run_scoring.build_parser().parse_args(line.split())
    assert args.t_model == "net.pt"


def test_help_is_grouped_and_shows_defaults(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for words in ("counting:", "output:", "data:", "machine:", "(default: published)"):
        assert words in out
