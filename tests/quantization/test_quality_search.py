"""The smallest network that has a wanted accuracy, and files of a wanted size."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import call

import run_compound_scaling
import run_quantization
import run_scoring
from model_quantization.grid import OBJECTIVES, Row
from model_quantization.quality_search import (
    ladder,
    next_strength,
    search,
    smallest,
    warm_epochs,
)

FLAGS = "--ini-c-divrs 0.3 --lr 1e-3 --lr2 1e-4 --epochs 2 --retrain-epochs 1 --no-cuda"


def quantize(capsys, images, trained, output, *flags):
    source = ("--model-dict", trained / "best_model.pt", "--data-path", images, "--batch-size", 8)
    return call(run_quantization.main, capsys, *source, *FLAGS.split(), "--output", output, *flags)


def test_the_ladder_goes_on_beyond_what_is_given():
    assert ladder([0.3, 0.1]) == [0.1, 0.3, 0.45, 0.675, 1.0]
    assert ladder([0]) == [0, 0.15, 0.225, 0.3375, 0.5063, 0.7594, 1.0]
    assert ladder([2]) == [2]


@pytest.mark.parametrize("limit", [0.01, 0.07, 0.16, 0.2, 0.31, 0.44, 0.9, 3.0])
def test_the_search_brackets_the_strongest_that_reaches_the_accuracy(limit):
    """Networks of strength up to the limit have the accuracy, as if training were not random."""
    points = []

    def run(point):
        points.append(point)
        return SimpleNamespace(best={"val_top1": 80.0 if point.gamma <= limit else 70.0})

    histories = search(0.3, [0.1, 0.2], accuracy=80.0, trials=12, run=run)
    assert len(histories) == len(points) == len({p.name for p in points}) <= 12
    reached = [p.gamma for p in points if p.gamma <= limit]
    missed = [p.gamma for p in points if p.gamma > limit]
    if limit >= 1:
        assert max(reached) == 1 and not missed
    else:  # bisection halves what is left with each network
        assert 0 <= limit - max(reached) < min(missed) - max(reached) < 0.02
    for i, point in enumerate(points):  # the strongest network that has it so far
        before = [p for p in points[:i] if p.gamma <= limit]
        start = max(before, key=lambda p: p.gamma).name if before else ""
        assert point.start == start


def test_when_nothing_reaches_it_the_trials_end():
    run = lambda point: SimpleNamespace(best={"val_top1": 10.0})  # noqa: E731
    assert len(search(0.3, [0.2], accuracy=80.0, trials=4, run=run)) == 4
    assert next_strength([0.2], [], [0.2]) == 0.1
    assert next_strength([0.2], [0.2], [0.2001]) is None  # nothing with four digits between them


def test_the_smallest_by_each_measure():
    figures = dict(zip(OBJECTIVES.values(), [3, 2, 1, 5], strict=True))
    other = dict(zip(OBJECTIVES.values(), [2, 3, 4, 4], strict=True))
    rows = [
        Row("misses", dict.fromkeys(figures, 0) | {"val_top1": 79.9}),
        Row("a", figures | {"val_top1": 81.0}),
        Row("b", other | {"val_top1": 80.0}),
        Row("c", figures | {"val_top1": 82.0}),
    ]
    chosen = {name: smallest(rows, name, 80.0) for name in OBJECTIVES}
    assert chosen == {"params": 2, "ops": 3, "score": 3, "bytes": 2}
    assert smallest(rows, "score", 82.1) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [((None, 4, 2), (1, 1)), ((None, 20, 15), (7, 5)), ((1, 4, 2), (1, 0)), ((6, 4, 0), (6, 0)),
     ((None, 1, 0), (1, 0)), ((2, 10, 1), (1, 1)), ((2, 1, 10), (1, 1)), ((None, 1, 9), (1, 2))],
)  # fmt: skip
def test_epochs_of_a_network_that_starts_from_another(given, expected):
    assert warm_epochs(*given) == expected


def test_a_target_is_reached_by_the_same_command_again_without_training(
    images, trained, tmp_path, capsys
):
    flags = ["--target-accuracy", 50, "--trials", 3, "--trial-epochs", 1]
    code, out, err = quantize(capsys, images, trained, tmp_path, *flags)
    assert (code, err) == (0, "")
    table = (tmp_path / "results.csv").read_text().splitlines()
    assert table[0].endswith(",zeros_all_percent,operations,score,packed_bytes") and len(table) == 4
    chosen = torch.load(tmp_path / "Ternary_best_acc.pt", weights_only=True)
    scores = {float(line.split(",")[6]) for line in table[1:] if float(line.split(",")[1]) >= 50}
    assert float(f"{chosen['figures']['score']:.6g}") == min(scores)
    assert chosen["figures"]["val_top1"] >= 50
    warm = sorted(tmp_path.glob("*_from_*"))
    assert len(warm) == 2
    for folder in warm:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert "starting from" in (folder / "logfile.txt").read_text()
    # the file that is promised is the file that stage 3 writes
    packed = tmp_path / "net.ec2t"
    source = ["--t-model", tmp_path / "Ternary_best_acc.pt"]
    assert call(run_scoring.main, capsys, *source, "--export", packed)[0] == 0
    assert packed.stat().st_size == chosen["figures"]["packed_bytes"]
    before = {path: path.read_bytes() for path in tmp_path.glob("*/best.pt")}
    again, out_again, _ = quantize(capsys, images, trained, tmp_path, *flags)
    assert again == 0 and "phase" not in out_again
    assert out_again.splitlines()[-1] == out.splitlines()[-1]
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*/best.pt")}
    # another wish chooses among, and adds to, the networks that are there
    code, out, _ = quantize(capsys, images, trained, tmp_path, *flags, "--objective", "bytes")
    assert code == 0 and "has the least bytes" in out and "phase" not in out


def test_networks_of_a_grid_are_part_of_a_search(images, trained, tmp_path, capsys):
    assert quantize(capsys, images, trained, tmp_path, "--lambda-max-divrs", 0.1)[0] == 0
    flags = ["--target-accuracy", 0, "--trials", 1, "--lambda-max-divrs", 0.1]
    code, out, _ = quantize(capsys, images, trained, tmp_path, *flags, "--objective", "bytes")
    assert code == 0 and "phase" not in out  # already trained, only measured
    assert "packed bytes" in out and "has the least bytes" in out


def test_the_next_network_starts_from_latents_centroids_and_weights(
    images, trained, tmp_path, capsys
):
    flags = ["--target-accuracy", 0, "--trials", 2, "--lambda-max-divrs", 0.1, "--trial-epochs", 1]
    still = ["--lr", 0, "--lr2", 0]  # nothing is learned: what was taken over is still there
    assert quantize(capsys, images, trained, tmp_path, *flags, *still)[0] == 0
    first, second = (
        torch.load(path, weights_only=True)
        for path in (next(tmp_path.glob("*_g0.1/last.pt")), next(tmp_path.glob("*_from_*/last.pt")))
    )
    for name, layer in first["resume"]["ternarizer"].items():
        other = second["resume"]["ternarizer"][name]
        assert torch.equal(layer["latent"], other["latent"])
        assert torch.equal(layer["centroids"], other["centroids"])
    assert second["resume"]["gamma"] == 0.15
    assert (
        second["figures" if "figures" in second else "history"][0]["zeros"]
        >= (first["history"][0]["zeros"])
    )


def test_a_target_that_is_missed_ends_with_8_and_keeps_the_best(images, trained, tmp_path, capsys):
    flags = ["--target-accuracy", 100, "--trials", 1, "--lambda-max-divrs", 0.99, "--lr", 0]
    own = json.loads(next(trained.glob("*/metrics.jsonl")).read_text().splitlines()[-1])
    if own["val_top1"] < 100:
        code, _, err = quantize(capsys, images, trained, tmp_path / "x", *flags)
        assert code == 8 and "itself has" in err and len(err.splitlines()) == 1
        assert not (tmp_path / "x").exists()
    flags[1] = own["val_top1"]
    code, _, err = quantize(capsys, images, trained, tmp_path / "y", *flags)
    written = torch.load(tmp_path / "y" / "Ternary_best_acc.pt", weights_only=True)
    if written["figures"]["val_top1"] < own["val_top1"]:
        assert code == 8 and err.count("\n") == 1 and "is not reached" in err
    else:
        assert code == 0


def test_stage_1_says_with_8_that_it_misses(images, tmp_path, capsys):
    flags = f"--dataset ImageFolder --data-path {images} --image-size 16 --batch-size 8 --no-cuda"
    search = ["--grid", 0.1, 0.5, "--phi", 1, "--epochs", 1, "--lr", 0, "--target-accuracy", 100]
    code, _, err = call(
        run_compound_scaling.main, capsys, *flags.split(), *search, "--output", tmp_path
    )
    assert code == 8 and "--target-accuracy 100 is not reached" in err
    assert (tmp_path / "best_model.pt").exists() and (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    "flags",
    ["--target-accuracy 101", "--target-accuracy -1", "--target-accuracy 50 --trials 0",
     "--target-accuracy 50 --objective size", "--trial-epochs 2", "--trials 6", "--objective bytes",
     "--target-bytes 0",
     "--target-accuracy 50 --target-bytes 9", "--target-accuracy 50 --epochs 0",
     "--target-accuracy 50 --method ttq", "--target-accuracy 50 --resume x.pt"],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(images, trained, tmp_path, capsys, flags):
    output = tmp_path / "none"
    try:
        code, _, err = quantize(capsys, images, trained, output, *flags.split())
    except SystemExit as stop:  # argparse
        code, err = stop.code, capsys.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1 and not output.exists()


@pytest.mark.parametrize("share", [0.97, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_file_of_so_many_bytes(images, trained, tmp_path, capsys, share):
    first = tmp_path / "first"
    short, output = ["--epochs", 1, "--retrain-epochs", 0], tmp_path / "b"
    flags = ["--lambda-max-divrs", 0.1, "--target-accuracy", 0, "--trials", 1, *short]
    assert quantize(capsys, images, trained, first, *flags)[0] == 0
    wanted = round(share * int((first / "results.csv").read_text().splitlines()[1].split(",")[-1]))
    code, _, err = quantize(capsys, images, trained, output, "--target-bytes", wanted, *short)
    assert (code, err) == (0, "")
    packed = tmp_path / "net.ec2t"
    source = ["--t-model", tmp_path / "b" / "Ternary_best_acc.pt", "--export", packed]
    assert call(run_scoring.main, capsys, *source)[0] == 0
    assert abs(packed.stat().st_size - wanted) <= 0.02 * wanted
