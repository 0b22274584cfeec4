"""Training with activations of few bits: signs, first steps, what is refused, what is kept."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import MICRONET, call, save_network, ternary_micronet
from torch import nn

import run_quantization
import run_scoring
from data.errors import UserError
from model_compound_scaling.checkpoints import load_network, read_checkpoint
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.few_values import few_values
from model_compound_scaling.networks.quantizers import describe, quantizers
from model_compound_scaling.networks.registry import NetworkSpec
from model_quantization import activation_bits
from model_quantization.activation_bits import StepSizes, begin, layer_bits

EC2T = "--batch-size 8 --workers 0 --no-cuda --ini-c-divrs 0.3 --lambda-max-divrs 0.15 --lr 1e-3"


class Zoo(nn.Module):
    """Inputs of all kinds: the image, changed in place or not; of any sign or none; flattened."""

    def __init__(self, form: str = "") -> None:
        super().__init__()
        self.form = form
        self.first = nn.Conv2d(3, 6, 3)
        self.beside = nn.Conv2d(3, 6, 3)
        self.swish = nn.Conv2d(6, 6, 3, padding=1)
        self.relu6 = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.plain = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = x.sub_(0.1).mul(2.0) if self.form == "in place" else x * 2.0
        y = F.relu(self.first(x)) - 0 * F.relu(self.beside(x.flip(2)))
        y = F.silu(self.swish(y))
        y = F.relu6(self.relu6(y), inplace=True)
        y = self.plain(self.drop(y))
        pooled = y.mean((2, 3)).abs()
        if self.form == "functional":
            return F.linear(pooled, self.fc.weight, self.fc.bias)
        return self.fc(input=pooled) if self.form == "by name" else self.fc(pooled)


def batches(count=5):
    torch.manual_seed(1)
    return [(torch.randn(4, 3, 9, 9), torch.zeros(4)) for _ in range(count)]


@pytest.mark.parametrize("form", ["", "in place"])
def test_signs_and_first_steps_are_those_of_the_first_batches(form):
    torch.manual_seed(0)
    network, data = Zoo(form), batches()
    bits = layer_bits(network, ["swish.weight", "plain.weight"], bits=3, others=8)
    assert bits == dict.fromkeys(("first", "beside", "relu6", "fc"), 8) | {"swish": 3, "plain": 3}
    before = [(x.clone(), network.training) for x, _ in data]
    begin(network, bits, iter(data), seed=7)
    assert describe(network) == {"swish": "u3", "relu6": "i8", "plain": "u3", "fc": "u8"}
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(before, data, strict=True))
    # the same numbers by hand: inputs of the layers, without quantizers, dropout as of the seed
    torch.manual_seed(0)
    other, seen = Zoo(form), {}
    for name, module in other.named_children():
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.setdefault(name, []).append(args[0].clone())
        )
    torch.manual_seed(7)
    with torch.no_grad():
        for images, _ in data[: activation_bits.FIRST_BATCHES]:
            other(images.clone())
    for name, quantizer in quantizers(network).items():
        mean = float(torch.cat([x.flatten() for x in seen[name]]).abs().mean())
        expected = 2 * mean / math.sqrt(quantizer.high)
        assert quantizer.step.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["functional", "by name"])
def test_an_input_that_is_not_to_be_found_is_named(form):
    network = Zoo(form)
    with pytest.raises(UserError, match="input of fc is not to be found"):
        begin(network, layer_bits(network, [], bits=4, others=8), batches(1), seed=0)
    assert not quantizers(network)


def test_statistics_and_weights_stay_as_they_are():
    torch.manual_seed(0)
    network = build(MICRONET)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    bits = layer_bits(network, [], bits=4, others=8)
    begin(network, bits, [(torch.randn(4, 3, 32, 32), None)], seed=0)
    after = network.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    added = after.keys() - before.keys()
    assert len(added) == len(bits) - 1 and all(n.endswith(".quantizer.step") for n in added)
    assert "conv1.quantizer.step" not in added


def test_no_rate_makes_a_step_negative():
    network = Zoo()
    begin(network, layer_bits(network, [], bits=4, others=8), batches(1), seed=0)
    sizes = StepSizes(network)
    groups = sizes.groups([{"params": list(network.parameters()), "weight_decay": 0.1}], lr=0.5)
    assert len(groups[0]["params"]) == 12 and groups[1]["params"] == sizes.steps
    optimizer = torch.optim.Adam(groups[1:], lr=0.5, fused=True)
    for step in range(30):
        for p in sizes.steps:
            p.grad = torch.full_like(p, 1.0 if step < 25 else -1.0)
        sizes.prepare_step()
        before = [p.item() for p in sizes.steps]
        optimizer.step()
        sizes.finish_step()
        assert all(p.item() >= b / 2 > 0 for p, b in zip(sizes.steps, before, strict=True))
    assert StepSizes(build(MICRONET)).groups(groups, lr=1.0) is groups


def test_updates_are_shares_of_a_step():
    network = Zoo()
    begin(network, layer_bits(network, [], bits=8, others=2), batches(1), seed=0)
    sizes = StepSizes(network)
    before = [p.item() for p in sizes.steps]
    optimizer = torch.optim.Adam(sizes.groups([{"params": []}], lr=0.02)[1:], fused=True)
    for i, p in enumerate(sizes.steps):
        p.grad = torch.full_like(p, (-1) ** i * 10.0**i)
    sizes.prepare_step()
    optimizer.step()
    sizes.finish_step()
    shares = [p.item() / b - 1 for p, b in zip(sizes.steps, before, strict=True)]
    assert shares == pytest.approx([-0.02 * (-1) ** i for i in range(len(shares))], rel=1e-3)
    assert max(before) > 3 * min(before)  # which is not so of what was added


@pytest.fixture(scope="module")
def quantized(images, trained, tmp_path_factory) -> Path:
    """Folder of a grid of 8 and 4 bits, and of the same without, from `trained`."""
    folder = tmp_path_factory.mktemp("quantized")
    flags = [*EC2T.split(), "--data-path", str(images), "--epochs", "1", "--retrain-epochs", "2"]
    flags += ["--model-dict", str(trained / "best_model.pt"), "--output"]
    assert run_quantization.main([*flags, str(folder), "--act-bits", "8", "4"]) == 0
    assert run_quantization.main([*flags, str(folder / "plain")]) == 0
    return folder


def runs(folder):
    found = {path.parent.name: path for path in folder.glob("*/metrics.jsonl")}
    return {name: list(map(json.loads, path.read_text().splitlines()))
            for name, path in found.items()}  # fmt: skip


def test_a_list_spans_the_grid_and_only_then_there_is_a_column(quantized):
    point = "cifar_micronet_ImageFolder_ec2t{}_s0.3_g0.15"
    found = runs(quantized)
    assert found.keys() == {point.format("_act8"), point.format("_act4")}
    assert runs(quantized / "plain").keys() == {point.format("")}
    rows = list(csv.DictReader((quantized / "results.csv").open()))
    assert [row["activation_bits"] for row in rows] == ["8", "4"]
    [row] = csv.DictReader((quantized / "plain" / "results.csv").open())
    assert "activation_bits" not in row
    [epochs] = runs(quantized / "plain").values()
    assert not {"act_bits", "activations"} & epochs[0].keys()
    plain = torch.load(quantized / "plain" / "Ternary_best_acc.pt", weights_only=True)
    assert "activations" not in plain["network"]
    assert not [key for key in plain["state_dict"] if "quantizer" in key]


def test_steps_are_learned_but_in_the_last_epoch(quantized):
    for name, epochs in runs(quantized).items():
        steps = [[layer["step"] for layer in figures["activations"]] for figures in epochs]
        assert len(steps) == 3 and all(s > 0 for epoch in steps for s in epoch)
        assert all(a != b for a, b in zip(*steps[:2], strict=True))
        assert steps[1] == steps[2], name
        bits = {layer["bits"] for layer in epochs[0]["activations"]}
        assert bits == {8, 4} if "act4" in name else {8}


def test_fewer_bits_cost_less_and_evaluation_knows_them(quantized, images, tmp_path, capsys):
    score = {name: epochs[-1]["score"] for name, epochs in runs(quantized).items()}
    [plain] = runs(quantized / "plain").values()
    assert min(score.values()) == score[min(score)] < max(score.values()) < plain[-1]["score"]
    for folder in quantized.glob("*_act*"):
        best = folder / "best.pt"
        top1 = torch.load(best, weights_only=True)["figures"]["val_top1"]
        flags = ("--data-path", images, "--workers", 0, "--no-cuda", "--predict", images / "val")
        bits = 4 if "act4" in folder.name else 8
        half = "--halfprecision" if bits == 4 else "--no-halfprecision"
        written = (half, "--json", tmp_path / "x.json")
        code, out, err = call(
            run_scoring.main, capsys, "--t-model", best, "--eval", *flags, *written
        )
        assert code == 0 and f"top-1 {top1:.2f} %" in out, err
        content = json.loads((tmp_path / "x.json").read_text())
        layers = {layer["name"]: layer for layer in content["layers"] if layer["weight_bits"]}
        assert f"inputs of {bits} bits: " in out
        assert layers["layer1.0.conv1"]["activation_bits"] == bits
        assert layers["linear"]["activation_bits"] == 8
        assert layers["conv1"]["activation_bits"] == (16 if bits == 4 else 32)


def two_classes(tmp_path):
    """A ternary MicroNet for `images`, and its file."""
    spec = NetworkSpec(MICRONET.model, 2, MICRONET.arguments)
    network, state = build(spec), ternary_micronet().state_dict()
    state |= {name: state[name][:2] for name in ("linear.weight", "linear.bias")}
    network.load_state_dict(state)
    data = {"dataset": "ImageFolder", "image_size": 16, "class_names": ["dark", "light"]}
    return network, save_network(tmp_path / "net.pt", network, spec, **data)


def test_a_ternary_network_gets_activations_and_keeps_its_codes(tmp_path, images, capsys):
    network, file = two_classes(tmp_path)

    def quantize(source, output, *flags):
        common = [*EC2T.split(), "--data-path", images, "--epochs", 0, "--retrain-epochs", 1]
        named = ["--model-dict", source, "--output", output, *flags]
        code, _, err = call(run_quantization.main, capsys, *common, *named)
        assert code == 0 or err.count("\n") == 1
        return code, err

    def require_kept(folder):
        best = read_checkpoint(folder / "Ternary_best_acc.pt")
        trained = load_network(best, best.network)
        for name, weight in network.named_parameters():
            if few_values(weight) is not None and weight.dim() > 1:
                found = trained.get_parameter(name)
                assert torch.equal(found.sign(), weight.sign()), name
                assert torch.allclose(found, weight, atol=1e-3), name  # centroids train
        return trained

    output, again, plain = (tmp_path / name for name in ("out", "again", "plain"))
    assert quantize(file, plain) == (0, "") and not describe(require_kept(plain))
    assert quantize(file, output, "--act-bits", 4) == (0, "")
    assert set(describe(require_kept(output)).values()) == {"i4", "u4", "i8", "u8"}
    # other activations are refused, the same ones go on
    best = output / "Ternary_best_acc.pt"
    code, err = quantize(best, again, "--act-bits", 8)
    assert code == 2 and "activations of other bits already" in err and not again.exists()
    assert quantize(best, again, "--act-bits", 4)[0] == 0 and require_kept(again)
    # nor can a run go on with others
    code, err = quantize(file, output, "--act-bits", 4, "--act-bits-other", 5, "--resume-override")
    assert code == 5 and "other activations than this run" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--act-bits 1", "invalid choice: 1"),
        ("--act-bits 4 9", "invalid choice: 9"),
        ("--act-bits 4 --act-bits-other 9", "invalid choice: 9"),
        ("--act-bits-other 4", "takes effect with --act-bits"),
    ],
)
def test_mistakes_in_flags_are_one_line(flags, words, capsys):
    code, _, err = call(run_quantization.main, capsys, "--model-dict", "x.pt", *flags.split())
    assert code == 2 and err.count("\n") == 1 and words in err


SLOW = pytest.mark.slow
WAYS = [
    "--target-accuracy 50 --trials 2 --objective bytes",
    "--do-prune --ec-pruning-fc --epochs 1",
    *(pytest.param(flags, marks=SLOW)
      for flags in ("--method ttq", "--levels 5 --target-bytes 6000", "--amp bf16 --channels-last",
                    "--teacher self --distill 0.5 --target-sparsity 60", "--amp fp16")),
]  # fmt: skip


@pytest.mark.parametrize("flags", WAYS)
def test_it_goes_with_all_else(trained, quantized, images, tmp_path, capsys, flags):
    """What became of the network is counted and packed as the run said."""
    source = quantized if "prune" in flags else trained / "best_model.pt"
    source = source if source.is_file() else source / "Ternary_best_acc.pt"
    activations = [] if "prune" in flags else ["--act-bits", 4]
    command = [*EC2T.split(), "--data-path", images, "--output", tmp_path, "--epochs", 1]
    command += ["--retrain-epochs", 1, "--model-dict", source, *activations, *flags.split()]
    code, _, err = call(run_quantization.main, capsys, *command)
    assert code == 0, err
    for folder in tmp_path.glob("cifar*"):
        best = torch.load(folder / "best.pt", weights_only=True)
        epochs = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        assert all(layer["step"] > 0 for layer in epochs[-1]["activations"])
        assert len(best["network"]["activations"]) == len(epochs[-1]["activations"]) == 9
        packed = tmp_path / "net.ec2t"
        code, _, err = call(run_scoring.main, capsys, "--t-model", folder / "best.pt", "--no-cuda",
                            "--json", tmp_path / "score.json", "--export", packed)  # fmt: skip
        assert code == 0, err
        score = json.loads((tmp_path / "score.json").read_text())["published"]["score"]
        assert score == pytest.approx(best["figures"]["score"])
        if "packed_bytes" in best["figures"]:
            assert best["figures"]["packed_bytes"] == packed.stat().st_size
