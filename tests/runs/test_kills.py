"""Real processes, killed or asked to stop at random moments of both training stages."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import run_compound_scaling
import run_quantization
from data import load_data
from model_compound_scaling.training.step import TrainStep

pytestmark = pytest.mark.faults

COMMON = "--batch-size 200 --workers 0 --no-cuda --checkpoint-every 3steps --output"
SCALING = f"--dataset Shapes --image-size 16 --grid 0.1 0.5 --phi 1 --epochs 2 {COMMON}"
QUANTIZATION = (
    f"--ini-c-divrs 0.3 --lambda-max-divrs 0.15 --epochs 2 --retrain-epochs 1 --lr 1e-3 {COMMON}"
)
FINAL = ("best_model.pt", "Ternary_best_acc.pt")


def both_stages(folder: Path) -> int:
    """Scaling, ternary and frozen phase, as a user's shell script runs them."""
    code = run_compound_scaling.main([*SCALING.split(), str(folder)])
    source = ["--model-dict", str(folder / "best_model.pt")]
    return code or run_quantization.main([*source, *QUANTIZATION.split(), str(folder)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of both stages, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert both_stages(folder) == 0
    return folder


def contents(folder: Path) -> dict:
    """All that a run leaves and that must not depend on interruptions."""
    found = {path.parent.name: path.read_text() for path in folder.glob("*/metrics.jsonl")}
    for path in [
        *folder.glob("*/best.pt"),
        *folder.glob("*/last.pt"),
        *map(folder.joinpath, FINAL),
    ]:
        content = torch.load(path, weights_only=True)
        ignored = ("config", "config_hash")  # they name the output folder
        found[path.relative_to(folder)] = {k: v for k, v in content.items() if k not in ignored}
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run_with_signals(folder, fork, number, moments):
    """Start both stages again and again, with a signal at each of the moments (seconds), then to
    the end; yields each exit status and how long it took to end after the signal."""
    load_data("Shapes", image_size=16)  # made once, for all children

    def body():
        os.close(reading)
        os.write(writing, b"!")
        with open(os.devnull, "w") as null:  # what is shown here is not the test's business
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        os._exit(both_stages(folder))

    for moment in [*moments, None]:
        reading, writing = os.pipe()
        child = fork(body)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        if moment is None:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(moment)
        os.kill(child, number)
        start = time.monotonic()
        _, status = os.waitpid(child, 0)
        yield os.waitstatus_to_exitcode(status), time.monotonic() - start


def test_sigkill_at_random_moments_changes_no_bit(whole, tmp_path, fork, full):
    random.seed(1)
    expected, during_saves = contents(whole), 0
    for chain in range(10 if full else 1):
        folder = tmp_path / str(chain)
        moments = [random.uniform(0.1, 1.5) for _ in range(20)]
        for _ in run_with_signals(folder, fork, signal.SIGKILL, moments):
            during_saves += any(folder.glob("*/.*.tmp"))
        assert same(contents(folder), expected)
    print(f"{during_saves} kills came during a save")


def test_sigterm_at_random_moments_saves_and_repeats_no_step(
    whole, tmp_path, fork, full, monkeypatch
):
    random.seed(2)
    steps = tmp_path / "steps"
    original = TrainStep.__call__

    def recorded(self, *args, number, **kwargs):
        with steps.open("a") as file:
            file.write(f"{number}\n")
        return original(self, *args, number=number, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", recorded)
    for chain in range(10 if full else 1):
        folder = tmp_path / str(chain)
        moments = [random.uniform(0.1, 1.5) for _ in range(20)]
        steps.write_text("")
        codes = set()
        for code, seconds in run_with_signals(folder, fork, signal.SIGTERM, moments):
            assert seconds < 5
            codes.add(code)
        assert codes <= {75, 0} and 75 in codes  # 0: the run had ended before its signal came
        assert same(contents(folder), contents(whole))
        taken = list(map(int, steps.read_text().split()))
        assert taken == [*range(100), *range(150)]  # 2 epochs, 2 + 1 epochs, of 50 steps each


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_other_signals(whole, tmp_path, fork, number, code):
    (found, _), *_ = run_with_signals(tmp_path, fork, number, [1.0])
    assert found in (code, 0)
    assert same(contents(tmp_path), contents(whole))
