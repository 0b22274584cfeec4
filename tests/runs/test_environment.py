"""environment.json: what made a run's figures."""

import json
import subprocess

import numpy
import torch
import torchvision
from helpers import POINT, call, scale

import run_scoring
from model_compound_scaling.runs import environment


def test_every_start_has_an_entry(images, tmp_path):
    for epochs in ("1", "1"):
        assert scale(images, tmp_path, "--epochs", epochs, "--no-cuda") == 0
    entries = json.loads((tmp_path / POINT / "environment.json").read_text())
    # the second command finds the network trained, and starts nothing
    assert len(entries) == 1
    assert scale(images, tmp_path, "--epochs", "2", "--no-cuda", "--resume-override") == 0
    entries = json.loads((tmp_path / POINT / "environment.json").read_text())
    assert len(entries) == 2 and entries[0]["time"] <= entries[1]["time"]
    for entry in entries:
        for module in (torch, torchvision, numpy):
            assert module.__version__.startswith(entry["versions"][module.__name__])
        assert entry["processes"] == len(entry["devices"]) == 1 and "CPU" in entry["devices"][0]


def test_the_commit_and_whether_files_were_changed_since(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CODE", tmp_path)
    seen = []
    for step in ("", "init -q", "commit -q --allow-empty -m first", "add file", "commit -q -m all"):
        (tmp_path / "file").write_text(step)
        if step:
            author = ["-c", "user.name=a", "-c", "user.email=a@b"]
            subprocess.run(["git", "-C", str(tmp_path), *author, *step.split()], check=True)
        entry = environment.environment(torch.device("cpu"))
        seen.append((entry["commit"] and len(entry["commit"]), entry["changed"]))
    # no repository, no commit yet, a new file, which git does not know, a staged one, all committed
    assert seen == [(None, None), (None, False), (40, False), (40, True), (40, True)]
    subprocess.run(["git", "-C", str(tmp_path), "checkout", "-q", "."], check=True)
    assert environment.environment(torch.device("cpu"))["changed"] is False


def test_a_damaged_file_is_begun_anew(tmp_path):
    path = tmp_path / "environment.json"
    for content in ("[{", "{}", "\x00"):
        path.write_text(content)
        environment.add_entry(path, {"time": 1})
        environment.add_entry(path, {"time": 2})
        assert [entry["time"] for entry in json.loads(path.read_text())] == [1, 2]


def test_a_score_says_what_made_it(checkpoint, tmp_path, capsys):
    target = tmp_path / "score.json"
    code, _, _ = call(run_scoring.main, capsys, "--t-model", checkpoint, "--json", target)
    assert code == 0
    assert json.loads(target.read_text())["environment"]["versions"]["cuda"] == torch.version.cuda
