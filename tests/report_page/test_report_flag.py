"""run_scoring.py --report: the page among the other files, and mistakes in one line."""

import importlib.util
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import MICRONET, POINT, call, save_network, ternary_micronet
from run_files import figures, save_run

import run_scoring
from model_compound_scaling.runs import environment

run = partial(call, run_scoring.main)
ARCHIVE = Path(__file__).parents[1] / "files_written_before" / "version_0.1.tar.xz"


@pytest.fixture
def clock(monkeypatch):
    """Commands start at the same time and as the same command."""
    made = {"time": "now", "command": ["run_scoring.py"], "versions": {}, "devices": []}
    monkeypatch.setattr(environment, "environment", lambda device: made)


def test_the_network_of_a_run_is_the_chosen_one(trained, tmp_path, capsys, clock):
    target, packed = tmp_path / "deep" / "page.html", tmp_path / "net.ec2t"
    flags = ["--t-model", trained / "best_model.pt", "--runs", trained, "--report", target]
    code, out, err = run(capsys, *flags, "--export", packed, "--question", "how small?")
    assert code == 0 and "no layer is ternary" in err and f"wrote {target}" in out
    page = target.read_text()
    assert "<h1>how small?</h1>" in page and f"★ {POINT}" in page
    assert "validation images of ImageFolder, measured in training" in page
    assert f"{packed.stat().st_size:,} bytes, packed file" in page
    assert f'data-v="{(trained / "best_model.pt").stat().st_size}"' in page
    # the same bytes again; a network that was changed is none of the runs'
    assert run(capsys, *flags, "--export", packed, "--question", "how small?")[0] == 0
    assert target.read_text() == page
    assert run(capsys, *flags, "--prune-threshold", 0.5)[0] == 0
    assert f"★ {POINT}" not in target.read_text() and "--eval measures it" in target.read_text()


def test_accuracy_as_measured_and_where(trained, images, tmp_path, capsys):
    target = tmp_path / "page.html"
    flags = ["--t-model", trained / "best_model.pt", "--data-path", images, "--report", target]
    assert run(capsys, *flags, "--eval", "--no-halfprecision", "--no-cuda")[0] == 0
    assert "on ImageFolder</h1>" in target.read_text()
    assert "16 validation images of ImageFolder, in float32" in target.read_text()


def test_runs_that_version_0_1_wrote(tmp_path, capsys):
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    target = tmp_path / "page.html"
    runs = ["--runs", tmp_path / "scaling", tmp_path / "quantization"]
    code, _, err = run(
        capsys, "--t-model", tmp_path / "Ternary_best_acc.pt", *runs, "--report", target
    )
    assert code == 0, err
    assert target.read_text().count(">in progress<") == 2 and "10.50 % top" in target.read_text()


@pytest.mark.parametrize(
    "recorded",
    [[1], {"val_top1": "<b>"}, {"val_top1": torch.ones(2)}, {"layers": [{}]}, "x", {1: 2.0}],
)
def test_figures_of_foreign_files(tmp_path, capsys, recorded):
    path = save_network(tmp_path / "net.pt", ternary_micronet(), MICRONET)
    torch.save(torch.load(path) | {"figures": recorded}, path)
    save_run(tmp_path / "runs" / "one", [figures(1, 60.0)])
    target = tmp_path / "page.html"
    flags = ["--report", target, "--runs", tmp_path / "runs"]
    assert run(capsys, "--t-model", path, *flags)[0] == 0
    assert "--eval measures it" in target.read_text() and "★ one" not in target.read_text()


def test_without_matplotlib_nothing_is_begun(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = run(capsys, "--t-model", "none.pt", "--report", tmp_path / "page.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--report needs matplotlib: pip install -r requirements-report.txt" in err


def mistakes(folder: Path) -> dict[str, tuple[list, str]]:
    """Flags and what is said of them; `good` and `bad` are folders with a run, `none` has none."""
    page, good = folder / "page.html", folder / "good"
    return {
        "no report": (["--runs", good], "--runs takes effect with --report"),
        "no page": (["--question", "?"], "--question takes effect with --report"),
        "same file": (["--report", page, "--json", page], "need different files"),
        "a folder": (["--report", good], "is a folder: name a file in it"),
        "the network": (["--report", folder / "net.pt"], "is the checkpoint itself"),
        "no runs": (["--report", page, "--runs", good, folder / "none"], "holds no run"),
        "damaged": (["--report", page, "--runs", good, folder / "bad"], "restore it, or move"),
    }


@pytest.mark.parametrize("case", mistakes(Path()))
def test_mistakes_are_one_line_and_write_nothing(checkpoint, tmp_path, capsys, case):
    for name in ("good", "bad"):
        save_run(tmp_path / name / "run", [figures(1, 60.0)])
    (tmp_path / "bad" / "run" / "metrics.jsonl").write_text("{")
    (tmp_path / "none").mkdir()
    flags, words = mistakes(tmp_path)[case]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    if case != "same file":
        flags = [*flags, "--csv", tmp_path / "layers.csv"]
    code, out, err = run(capsys, "--t-model", checkpoint, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_page_that_cannot_be_written_leaves_no_other_file(checkpoint, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    flags = ["--json", tmp_path / "net.json", "--report", tmp_path / "taken" / "page.html"]
    code, _, err = run(capsys, "--t-model", checkpoint, *flags)
    assert (code, err.count("\n")) == (7, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", "taken"}
