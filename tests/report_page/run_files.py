"""Run folders as both stages write them, without their checkpoints, and a network to report on."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from model_scoring.counting import score
from model_scoring.report_page import Subject

START = {
    "time": "2026-01-02T03:04:05Z",
    "command": ["run_quantization.py", "--model-dict", "net.pt"],
    "commit": "0123456789abcdef",
    "changed": False,
    "versions": {"python": "3.11", "torch": "2.14", "cuda": None},
    "devices": ["a GPU", "a GPU"],
    "processes": 2,
}


def figures(epoch: int, top1: float, *, phase: str = "ternary", **more: object) -> dict:
    """An epoch as metrics.jsonl of stage 2 has it."""
    loss = {"train_loss": 2 - top1 / 100, "val_loss": 2.1 - top1 / 100}
    figures = {"phase": phase, "epoch": epoch, **loss, "train_top1": top1 / 2, "val_top1": top1}
    return {**figures, "zeros": 50.0, "scoring_params": 1000.0, "layers": [{"zeros": 0.5}], **more}


def save_run(folder: Path, epochs: list[dict], *, planned: int = 3, start: dict = START) -> Path:
    """Make a folder of stage 2 that has these epochs of three, the last with frozen codes."""
    folder.mkdir(parents=True)
    config = {"epochs": planned - 1, "retrain_epochs": 1, "seed": 7, "model_dict": "net.pt"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    (folder / "environment.json").write_text(json.dumps([start]))
    return folder


def subject(best: dict | None = None, *, name: str = "conv", **known: object) -> Subject:
    """What the page is about: a network of two layers, one of them ternary and called `name`."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, 8, 3, padding=1), "act": nn.ReLU(), "last": nn.Conv2d(8, 4, 1)}
    network = nn.Sequential(OrderedDict(layers)).eval()
    network[0].weight.data = torch.randint(-1, 2, network[0].weight.shape).float() / 4
    size = {"checkpoint": (Path("net.pt"), 5000), "packed file": (Path("net.ec2t"), 1234)}
    values = {"question": "Which?", "model": "a-network", "score": score(network, (3, 8, 8))}
    values |= {"top1": 81.25, "images": "all images", "figures": best or {}, "files": size}
    return Subject(**{**values, "latency": {}, "start": START, "seed": 3, **known})
