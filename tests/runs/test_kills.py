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
from model_compound_scaling.machine import signals
from model_compound_scaling.training.step import TrainStep

pytestmark = pytest.mark.faults

COMMON = "--workers 0 --no-cuda --image-size 16 --checkpoint-every 3steps"
SCALING = "--grid 0.1 0.5 --phi 1 --epochs 2"
QUANTIZATION = "--ini-c-divrs 0.3 --lambda-max-divrs 0.15 --epochs 2 --retrain-epochs 1 --lr 1e-3"
QUANTIZATION += " --act-bits 4"  # all that a plain run has, and steps
FINAL = ("best_model.pt", "Ternary_best_acc.pt")


@pytest.fixture(scope="module")
def data(images, full) -> tuple[str, int]:
    """Flags of the data, and the steps of an epoch; with --full, both stages take seconds."""
    if full:
        load_data("Shapes", image_size=16)  # made once, for all children
        return "--dataset Shapes --batch-size 200", 50
    return f"--dataset ImageFolder --data-path {images} --batch-size 8", 6


def both_stages(folder: Path, data: str) -> int:
    """Scaling, ternary and frozen phase, as a user's shell script runs them."""
    common = [*data.split(), *COMMON.split(), "--output", str(folder)]
    code = run_compound_scaling.main([*SCALING.split(), *common])
    source = ["--model-dict", str(folder / "best_model.pt")]
    return code or run_quantization.main([*source, *QUANTIZATION.split(), *common])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict:
    """What both stages leave that are not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert both_stages(folder, data[0]) == 0
    return contents(folder)


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


@pytest.fixture
def interrupted(data, fork, monkeypatch):
    """A function that starts both stages in a folder again and again, and last to the end.

    Each but the last gets a signal, so many seconds after so many steps have begun. It yields how
    each ended, as an exit code, and the seconds that took from the signal on.
    """
    flags, _ = data
    writing = None

    def start(folder):
        nonlocal writing
        reading, writing = os.pipe()  # one byte when signals are listened to, and one a step
        child = fork(lambda: os._exit(body(folder)))
        os.close(writing)
        return child, reading

    def body(folder):
        with open(os.devnull, "w") as null:  # what is shown here is not the test's business
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            with signals.listening():  # between the stages, too
                os.write(writing, b"!")
                return both_stages(folder, flags)
        except signals.Stopped as stop:
            return stop.exit_code

    original = TrainStep.__call__

    def tell(self, *args, **kwargs):
        os.write(writing, b".")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", tell)

    def run(folder, number, moments):
        for steps, seconds in moments:
            child, reading = start(folder)
            for _ in range(1 + steps):
                os.read(reading, 1)  # nothing, if it has ended
            time.sleep(seconds)
            os.kill(child, number)
            begin = time.monotonic()
            _, status = os.waitpid(child, 0)
            os.close(reading)
            yield os.waitstatus_to_exitcode(status), time.monotonic() - begin
        child, reading = start(folder)
        _, status = os.waitpid(child, 0)
        os.close(reading)
        assert os.waitstatus_to_exitcode(status) == 0

    return run


def random_moments(full: bool, count: int) -> list[tuple[int, float]]:
    """(steps, seconds) for `interrupted`: any second of the long runs, or any step of the short."""
    if full:
        return [(0, random.uniform(0.1, 1.5)) for _ in range(count)]
    return [(random.randint(0, 6), random.uniform(0, 0.03)) for _ in range(count)]


CHAINS = [0, *(pytest.param(chain, marks=pytest.mark.slow) for chain in range(1, 10))]


@pytest.mark.parametrize("chain", CHAINS)
def test_sigkill_at_random_moments_changes_no_bit(whole, tmp_path, interrupted, full, chain):
    random.seed(chain)
    for _ in interrupted(tmp_path, signal.SIGKILL, random_moments(full, 20)):
        pass
    assert same(contents(tmp_path), whole)


@pytest.mark.parametrize("chain", CHAINS)
def test_sigterm_at_random_moments_saves_and_repeats_no_step(
    whole, tmp_path, monkeypatch, interrupted, data, full, chain
):
    random.seed(chain)
    taken = tmp_path / "steps"
    original = TrainStep.__call__

    def recorded(self, *args, number, **kwargs):
        with taken.open("a") as file:
            file.write(f"{number}\n")
        return original(self, *args, number=number, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", recorded)
    codes = set()
    moments = random_moments(full, 20 if full else 8)
    for code, seconds in interrupted(tmp_path, signal.SIGTERM, moments):
        assert seconds < 5 or not full  # a quick machine is needed to say so
        codes.add(code)
    assert codes <= {75, 0} and 75 in codes  # 0: the run had ended before its signal came
    assert same(contents(tmp_path), whole)
    _, steps = data
    expected = [*range(2 * steps), *range(3 * steps)]  # 2 epochs, then 2 + 1
    assert list(map(int, taken.read_text().split())) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_other_signals(whole, tmp_path, interrupted, number, code):
    [(found, _)] = interrupted(tmp_path, number, [(4, 0)])
    assert found in (code, 0)  # 0: it had ended before its signal came
    assert same(contents(tmp_path), whole)
