"""find_network.sh: an accuracy in, the smallest network out, whatever happens on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts.answer import decided, goal

ROOT = Path(__file__).parents[2]
SCALING = "--grid 0.1 0.5 --phi 1 --epochs 2 --lr 0.05 --checkpoint-every 3steps"
QUANTIZATION = (
    "--ini-c-divrs 0.3 --lr 1e-3 --lr2 1e-4 --epochs 1 --retrain-epochs 1 --trials 2 "
    "--trial-epochs 1 --checkpoint-every 3steps"
)


def command(images, output, *, accuracy=60, more=()):
    data = ["--dataset", "ImageFolder", "--image-size", "16", "--data-path", str(images)]
    data += ["--batch-size", "8", "--workers", "0", "--no-cuda", *more]
    asked = ["--accuracy", str(accuracy), "--output", str(output)]
    parts = ["--scaling", *SCALING.split(), "--quantization", *QUANTIZATION.split()]
    return ["bash", str(ROOT / "scripts" / "find_network.sh"), *asked, *data, *parts]


def find(images, output, **options):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= options.pop("environment", {})
    return subprocess.run(
        command(images, output, **options), env=environment, capture_output=True, text=True
    )


def tensors(output):
    names = ("full_precision.pt", "network.pt", "network_thin.pt")
    states = (torch.load(output / name, weights_only=True)["state_dict"] for name in names)
    return [(key, tensor) for state in states for key, tensor in state.items()]


def same(one, other):
    pairs = zip(tensors(one), tensors(other), strict=True)
    packed = [(output / "network.ec2t").read_bytes() for output in (one, other)]
    return packed[0] == packed[1] and all(a[0] == b[0] and a[1].equal(b[1]) for a, b in pairs)


@pytest.fixture(scope="module")
def found(images, tmp_path_factory):
    """Folder and output of a search that nobody stopped."""
    output = tmp_path_factory.mktemp("found") / "a folder"
    done = find(images, output)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_the_answer_and_its_files(found, images):
    output, shown = found
    score = json.loads((output / "network.json").read_text())
    assert score["top1"] >= 60
    lines = shown.splitlines()
    row = next(line for line in lines if line.startswith("found "))
    published = score["published"]
    for text in (f"{score['top1']:.2f} %", f"{100 * score['zeros']:.2f} %",
                 f"{published['params']:,.0f}", f"{published['score']:.6f}"):  # fmt: skip
        assert text in row
    for name in ("network.pt", "network.ec2t", "network_thin.pt", "full_precision.pt"):
        file = output / name
        assert any(str(file) in line and f"{file.stat().st_size:,}" in line for line in lines)
    assert (output / "report.html").read_text().startswith("<!doctype html>")
    assert re.match(r"asked for 60 % top-1: \d+\.\d\d % on the validation images", lines[-2])
    assert lines[-1].endswith(" s in all")


def test_it_says_which_images_decided(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content |= {"figures": {"val_top1": 81.234}, "data": content["data"] | {"holdout": 12.5}}
    torch.save(content, checkpoint)
    said = "81.23 % on the 12.5 % of the training images that were held out, which decided"
    assert decided(checkpoint) == said


def test_the_same_line_again_trains_nothing(found, images):
    output, shown = found
    before = {path: path.read_bytes() for path in output.glob("*/*/best.pt")}
    done = find(images, output)
    assert done.returncode == 0 and "phase" not in done.stdout
    assert before == {path: path.read_bytes() for path in output.glob("*/*/best.pt")}
    answer = [line for line in shown.splitlines() if line.startswith("found ")]
    assert answer == [line for line in done.stdout.splitlines() if line.startswith("found ")]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_it_ends_with_the_same_bits(found, images, tmp_path, number):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for seconds in (3, 5, 7, 9, 11):
        child = subprocess.Popen(
            command(images, tmp_path), env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(seconds)
        os.killpg(child.pid, number)
        assert child.wait() in (0, 75, -number, 128 + number)
    done = find(images, tmp_path)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path, found[0])


@pytest.mark.slow
def test_two_processes_agree(found, images, tmp_path):
    launch = f"{sys.executable} -m torch.distributed.run --no-python --nproc_per_node 2"
    done = find(images, tmp_path, environment={"LAUNCH": launch})
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "network.json").read_text())["top1"] >= 60


def test_an_accuracy_out_of_reach_ends_with_8(images, tmp_path):
    done = find(images, tmp_path, accuracy=100, more=["--seed", "3", "--weight-decay", "1"])
    assert done.returncode == 8 and "--target-accuracy 100" in done.stderr
    assert (tmp_path / "full_precision.pt").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [([], "--accuracy is needed"), (["--accuracy", "x"], "--accuracy is needed"),
     (["--accuracy", "101"], "--accuracy is needed"), (["--accuracy"], "--accuracy needs a value"),
     (["--accuracy", "50", "--margin", "-1"], "--margin is needed"),
     (["--accuracy", "50", "--dataset", "nothing"], "--dataset"),
     (["--accuracy", "50", "--dataset", "Shapes", "--momentum", "0.9"], "--momentum"),
     (["--accuracy", "50", "--objective", "size", "--dataset", "Shapes"], "--objective")],
)  # fmt: skip
def test_bad_flags_are_one_line_and_write_nothing(tmp_path, flags, said):
    script = str(ROOT / "scripts" / "find_network.sh")
    environment = {**os.environ, "PYTHON": sys.executable}
    asked = ["bash", script, "--output", str(tmp_path / "x"), *flags]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_the_goal_of_stage_1():
    assert goal("80.5", "1.5") == "82" and goal("99", "1.5") == "100"
