"""What is read of run folders, and what is said of those that are damaged or of other programs."""

import json
import re
import sys

import pytest
import torch
from helpers import MICRONET, POINT, save_network, ternary_micronet
from run_files import figures, save_run

from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.counting import score
from model_scoring.report_page import published_parameters, read_trials


def read(*folders):
    return read_trials(folders, published_parameters)


def test_runs_of_both_stages(trained, tmp_path):
    rows = [figures(1, 60.0), figures(2, 70.0), figures(3, 65.0, phase="frozen")]
    save_run(tmp_path / "b", rows)
    save_run(tmp_path / "a", [])
    first, *others = read(trained, tmp_path)
    assert (first.stage, first.history.folder.name, first.planned) == (1, POINT, 2)
    assert first.starts[0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [trial.history.folder.name for trial in others] == ["a", "b"]
    assert [trial.history.epochs_done for trial in others] == [0, 3]
    assert [trial.parameters for trial in others] == [None, 1000.0]
    assert others[1].history.best == rows[1] and others[1].planned == 3


def test_a_full_precision_network_is_counted_as_stage_2_counts(tmp_path):
    network = build(MICRONET)
    path = save_network(tmp_path / "best.pt", network, MICRONET)
    counted = score(network.eval(), (3, 32, 32), family="micronet")
    assert published_parameters(path) == counted.totals["published"].params
    values = sum(parameter.numel() for parameter in network.parameters())
    assert 0.9 < published_parameters(path) / (values / 2) <= 1  # 16 bits are half a parameter
    path = save_network(tmp_path / "best.pt", ternary_micronet(), MICRONET)
    assert published_parameters(path) < 0.5 * counted.totals["published"].params


def test_a_file_s_own_builder_runs_only_if_it_is_confirmed(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = NetworkSpec("made_here:net", 4)
    path = save_network(tmp_path / "best.pt", build(spec), spec, image_size=8)
    monkeypatch.delitem(sys.modules, "made_here")
    for trusted in (None, "made_there:net", "resnet20"):
        with pytest.raises(UserError, match="confirm with --model made_here:net"):
            published_parameters(path, trusted=trusted)
    assert "made_here" not in sys.modules
    assert published_parameters(path, trusted="made_here:net") == (4 * 27 + 4) / 2


def test_folders_that_are_no_runs_or_were_set_aside_are_left_out(tmp_path):
    save_run(tmp_path / "run", [figures(1, 60.0)])
    save_run(tmp_path / "run.old1", [figures(1, 99.0)])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "results.csv").write_text("")
    (tmp_path / "run" / "environment.json").unlink()  # of version 0.1
    again = tmp_path / "pictures" / ".."
    assert [t.history.folder.name for t in read(tmp_path, again)] == ["run"]
    assert read(tmp_path)[0].starts == []


@pytest.mark.parametrize("folder", ["", "nowhere", "file"])
def test_a_folder_without_runs(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--runs .* holds no run: name an --output"):
        read(tmp_path / folder)


ROW = json.dumps(figures(1, 60.0))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"epochs": "3", "seed": 0, "model_dict": "", "retrain_epochs": 0}'),
        ("config.json", '{"epochs": 3, "seed": 0, "model_dict": ""}'),
        ("config.json", "[" * 100_000),
        ("config.json", "\x00\xff"),
        ("metrics.jsonl", None),
        ("metrics.jsonl", ROW[:-5]),
        ("metrics.jsonl", "3"),
        ("metrics.jsonl", "null\n" + ROW),
        *(("metrics.jsonl", ROW.replace(f'"{key}"', '"x"')) for key in figures(1, 60.0)
          if key != "layers"),
        *(("metrics.jsonl", re.sub(f'"{key}": [^,]*', f'"{key}": []', ROW, count=1))
          for key in figures(1, 60.0) if key != "layers"),
        ("metrics.jsonl", ROW + "\n" + ROW.replace('"epoch": 1', '"epoch": 2, "on_target": "x"')),
        ("environment.json", "{"),
        ("environment.json", "{}x"),
        ("environment.json", "3"),
        ("environment.json", "[3]"),
        ("environment.json", '{"time": "now"}'),
        ("environment.json", '[{"time": 3, "command": []}]'),
        ("environment.json", '[{"time": "now", "command": "rm"}]'),
    ],
)  # fmt: skip
def test_damaged_files_are_named_with_the_fix(tmp_path, file, content):
    save_run(tmp_path / "good", [figures(1, 60.0)])
    path = save_run(tmp_path / "bad", [figures(1, 60.0)]) / file
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert str(path) in message and f"move {path.parent} elsewhere" in message
    assert "\n" not in message and len(message) < 600


def test_a_damaged_network_of_stage_1_is_named(trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).write_bytes((trained / POINT / name).read_bytes())
    for content in (b"", (trained / POINT / "best.pt").read_bytes()[:-500]):
        (folder / "best.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"best\.pt cannot be used \(.*move .*run elsewhere"):
            read(tmp_path)
