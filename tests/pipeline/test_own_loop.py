"""EC2T in somebody else's loop (examples/own_loop.py), and its result in stage 3."""

import difflib
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from helpers import call

import run_scoring
from examples import own_loop
from model_quantization.ec2t.ternarizer import all_but_the_first

DOC = Path(__file__).parents[2] / "docs" / "own-loop.md"


def test_six_lines_are_the_difference_and_the_page_shows_it():
    loops = (own_loop.plain_loop, own_loop.ternary_loop)
    plain, ternary = (inspect.getsource(loop).splitlines()[1:] for loop in loops)
    difference = [line for line in difflib.ndiff(plain, ternary) if line[0] != "?"]
    added = [line for line in difference if line[0] == "+" and line.strip("+ ")]
    taken = [line for line in difference if line[0] == "-"]
    assert len(added) <= 6 and len(taken) <= 1 and len(added) > len(taken)
    (shown,) = re.findall(r"```diff\n(.*?)```", DOC.read_text(), re.DOTALL)
    as_shown = [f"{line[0]}{line[2:]}".rstrip() for line in difference]
    assert [line.rstrip() for line in shown.splitlines()] == as_shown


def run(name, result, capsys, *flags):
    """What the example says: accuracies of the plain and of the ternary network."""
    own_loop.main([name, str(result), *flags])
    return [float(top1) for top1 in re.findall(r"top-1 ([\d.]+) %", capsys.readouterr().out)]


def score(result, capsys, tmp_path, *flags):
    """What stage 3 says of a file: everything, as a dict."""
    found = tmp_path / "score.json"
    images = ["--dataset", "Shapes", "--normalize", "none", "--eval", "--no-halfprecision"]
    command = ["--t-model", result, *flags, *images, "--no-cuda", "--json", found]
    code, _, err = call(run_scoring.main, capsys, *command)
    assert code == 0, err
    return json.loads(found.read_text())


def assert_ternary(name, result):
    """An ordinary state dict of that network, but for three values a layer."""
    model, state = own_loop.make_model(name), torch.load(result, weights_only=True)
    model.load_state_dict(state)
    names = all_but_the_first(model)
    for layer in names:
        assert len(state[layer].unique()) <= 3, layer
    others = [state[k] for k, p in model.named_parameters() if k not in names and p.dim() > 1]
    assert others and all(len(weight.unique()) > weight.numel() / 2 for weight in others)


def test_a_network_of_torchvision(tmp_path, capsys):
    name, result, packed = "shufflenet_v2_x0_5", tmp_path / "result.pt", tmp_path / "net.ec2t"
    accuracies = run(name, result, capsys, "--epochs", "2", "--images", "200")
    assert_ternary(name, result)
    named = ("--model", f"torchvision:{name}")
    scored = score(result, capsys, tmp_path, *named, "--export", packed, "--export-precision=fp32")
    assert scored["top1"] == pytest.approx(accuracies[1], abs=0.01)
    assert scored["zeros"] > 0.1
    assert packed.stat().st_size < result.stat().st_size / 4
    again = score(packed, capsys, tmp_path)
    assert (again["top1"], again["zeros"]) == (scored["top1"], scored["zeros"])


def test_a_network_of_timm_learns(tmp_path, capsys, monkeypatch):
    pytest.importorskip("timm")
    name, result = "timm:test_resnet", tmp_path / "result.pt"
    plain, ternary = run(name, result, capsys, "--epochs", "3", "--images", "2000")
    assert plain > 15 and ternary > 25  # by chance: 10 +- 0.7
    assert_ternary(name, result)
    builder = "import timm\n\ndef network(num_classes):\n"
    builder += "    return timm.create_model('test_resnet', num_classes=num_classes)\n"
    (tmp_path / "my_networks.py").write_text(builder)
    monkeypatch.syspath_prepend(tmp_path)
    scored = score(result, capsys, tmp_path, "--model", "my_networks:network")
    assert scored["top1"] == pytest.approx(ternary, abs=0.01) and scored["zeros"] > 0.4
