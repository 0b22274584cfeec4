"""--holdout: training images decide, the validation images are only reported."""

import json

import numpy as np
import pytest
import torch
from helpers import call, save_tree

import run_compound_scaling
import run_quantization
import run_scoring
from data import load_data
from data.errors import UserError
from data.sources import hold_out

COMMON = "--batch-size 8 --no-cuda --workers 0"
SCALING = "--dataset ImageFolder --image-size 16 --grid 0.1 0.5 --phi 1 --epochs 2 --lr 0.05"
QUANTIZATION = (
    "--ini-c-divrs 0.3 --lambda-max-divrs 0.15 --epochs 1 --retrain-epochs 1 --lr 1e-3 --lr2 1e-4"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return save_tree(tmp_path_factory.mktemp("held"), train=20, val=6)


def stage1(capsys, tree, output, *flags):
    command = (*SCALING.split(), *COMMON.split(), "--data-path", tree, "--output", output, *flags)
    return call(run_compound_scaling.main, capsys, *command)


def stage2(capsys, tree, source, output, *flags):
    command = (*QUANTIZATION.split(), *COMMON.split(), "--data-path", tree, "--output", output)
    return call(run_quantization.main, capsys, "--model-dict", source, *command, *flags)


def test_a_share_of_each_class_is_drawn_by_seed():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.randint(2, 60, (int(torch.randint(1, 9, (), generator=generator)),))
        labels = torch.arange(len(sizes)).repeat_interleave(sizes)
        labels = labels[torch.randperm(len(labels), generator=generator)]
        percent = float(torch.rand((), generator=generator) * 49 + 1)
        held = hold_out(labels, percent, seed=3)
        assert held.equal(hold_out(labels, percent, seed=3))
        for label, size in enumerate(sizes.tolist()):
            # round half to even, as torch and Python do
            assert int(held[labels == label].sum()) == max(
                1, round(np.float32(size * percent / 100))
            )
        if len(labels) > 60:
            assert not held.equal(hold_out(labels, percent, seed=4))
    with pytest.raises(UserError, match="leaves no training image"):
        hold_out(torch.tensor([0, 0, 0, 1]), 30, seed=0)


@pytest.mark.parametrize("cache_gb", [4, 0])
def test_the_parts_make_up_the_whole(tree, cache_gb):
    """From memory and from files: each image is in one part, the others as ever."""
    options = {"data_path": tree, "image_size": 16, "augment": "none", "workers": 0, "seed": 7}
    options |= {"cache_gb": cache_gb, "batch_size": 1}
    whole = load_data("ImageFolder", **options)
    held = load_data("ImageFolder", holdout=25, holdout_seed=1, **options)

    def images(loader):
        return sorted(image.numpy().tobytes() for batch, _ in loader.epoch(0) for image in batch)

    assert images(held.reported) == images(whole.val)
    assert (held.train.samples, held.val.samples) == (30, 10)
    assert sorted(images(held.train) + images(held.val)) == images(whole.train)
    assert held.val.epoch(0) and whole.reported is None


def test_both_stages_decide_on_the_same_images_and_report_once(tree, tmp_path, capsys):
    code, out, err = stage1(capsys, tree, tmp_path / "1", "--holdout", 25)
    assert (code, err) == (0, "") and out.count("decided nothing") == 1
    assert "validation top-1" in out
    best = torch.load(tmp_path / "1" / "best_model.pt", weights_only=True)
    assert (best["data"]["holdout"], best["data"]["holdout_seed"]) == (25.0, 0)
    [folder] = tmp_path.glob("1/*/validation.json")
    reported = json.loads(folder.read_text())
    # the same figure by stage 3, which always takes the validation images
    flags = ("--t-model", tmp_path / "1" / "best_model.pt", "--data-path", tree, "--eval")
    target = tmp_path / "a.json"
    more = ("--no-halfprecision", "--no-cuda", "--workers", 0, "--json", target)
    assert call(run_scoring.main, capsys, *flags, *more)[0] == 0
    assert json.loads(target.read_text())["top1"] == reported["top1"]
    table = (tmp_path / "1" / "results.csv").read_text().splitlines()
    assert table[0].endswith(",best,validation")
    assert float(table[1].split(",")[-1]) == pytest.approx(reported["top1"])
    # again: nothing is trained, nothing is measured
    code, out, _ = stage1(capsys, tree, tmp_path / "1", "--holdout", 25)
    assert code == 0 and "decided nothing" not in out and "phase" not in out
    # stage 2 knows it from the checkpoint, though its own seed is another
    source = tmp_path / "1" / "best_model.pt"
    code, out, err = stage2(capsys, tree, source, tmp_path / "2", "--seed", 5)
    assert (code, err) == (0, "") and "decided nothing" in out
    ternary = torch.load(tmp_path / "2" / "Ternary_best_acc.pt", weights_only=True)
    assert (ternary["data"]["holdout"], ternary["data"]["holdout_seed"]) == (25.0, 0)
    header = (tmp_path / "2" / "results.csv").read_text().splitlines()[0]
    assert header.endswith(",validation_top1_percent")
    page, runs = tmp_path / "page.html", (tmp_path / "1", tmp_path / "2")
    flags = ("--t-model", tmp_path / "2" / "Ternary_best_acc.pt", "--report", page, "--runs", *runs)
    assert call(run_scoring.main, capsys, *flags, "--no-cuda")[0] == 0
    shown = page.read_text()
    assert "training images that were held out" in shown and "on validation images, %" in shown
    code, out, _ = stage2(capsys, tree, source, tmp_path / "3", "--holdout", 10)
    assert code == 0 and "warning: --holdout 10, but 25 made the checkpoint" in out


def test_a_run_that_was_stopped_before_it_reported_does_so(tree, tmp_path, capsys):
    assert stage1(capsys, tree, tmp_path, "--holdout", 25)[0] == 0
    [path] = tmp_path.glob("*/validation.json")
    before = path.read_text()
    path.unlink()
    code, out, _ = stage1(capsys, tree, tmp_path, "--holdout", 25)
    assert code == 0 and "phase" not in out and path.read_text() == before


@pytest.mark.parametrize("percent", ["-1", "101", "100", "98"])
def test_bad_shares_are_one_line(tree, tmp_path, capsys, percent):
    output = tmp_path / "none"
    try:
        code, _, err = stage1(capsys, tree, output, "--holdout", percent)
    except SystemExit as stop:
        code, err = stop.code, capsys.readouterr().err
    assert code == 2 and "--holdout" in err and len(err.splitlines()) == 1
    assert not list(output.glob("*/last.pt"))
