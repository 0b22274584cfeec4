"""What a run may be continued from, and what must not pass for a finished one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import POINT, save_tree, scale

import run_quantization
from data.errors import UserError
from model_compound_scaling.checkpoints.errors import DiskError
from model_compound_scaling.command_line.entry import out_of_memory
from model_compound_scaling.runs import run
from model_compound_scaling.training.loop import CHECK_EVERY
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.recipe import Recipe
from model_compound_scaling.training.step import TrainStep

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
EC2T = "--batch-size 8 --no-cuda --ini-c-divrs 0.3 --lambda-max-divrs 0.15 --lr 1e-3"


def best_top1(output):
    best = torch.load(output / "best_model.pt", weights_only=True)
    return best["figures"]["val_top1"]


def test_an_epoch_whose_network_was_not_saved_is_trained_again(
    images, tmp_path, monkeypatch, capsys
):
    finish = run.Run.finish_epoch

    def rising(self, figures, content):
        figures["val_top1"] = 10.0 * figures["epoch"]  # so that the last epoch is the best
        finish(self, figures, content)

    def full_disk(content, path):
        raise DiskError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(run.Run, "finish_epoch", rising)
    assert scale(images, tmp_path, "--epochs", "1") == 0
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_file", full_disk)
        patched.setattr(run, "write_generation", full_disk)
        assert scale(images, tmp_path, "--resume-override") == 7
    capsys.readouterr()
    assert scale(images, tmp_path, "--resume-override") == 0
    assert "after epoch 1" in capsys.readouterr().out and best_top1(tmp_path) == 20


def test_a_damaged_best_network_is_restored_from_the_last_checkpoint(images, trained, tmp_path):
    output = shutil.copytree(trained, tmp_path / "x")
    expected = best_top1(output)
    best = output / POINT / "best.pt"
    best.write_bytes(best.read_bytes()[:-50] + bytes(50))
    (output / "best_model.pt").unlink()
    assert scale(images, output) == 0
    assert best_top1(output) == expected


def test_other_classes_are_another_run(images, trained, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "x")
    moved = shutil.copytree(images, tmp_path / "moved")
    assert scale(moved, output) == 0
    assert "already trained" in capsys.readouterr().out
    other = save_tree(tmp_path / "other", ("bus", "car"))
    assert scale(other, output) == 2
    assert "classes 2 (" in capsys.readouterr().err


def resumable(trained):
    return torch.load(trained / POINT / "last.pt", weights_only=True)


@pytest.mark.parametrize(
    "edit",
    [
        {"resume": None},
        {"resume": 3},
        {"resume": {"phase": "frozen"}},
        {"history": 1},
        {"config": []},
        {"best": None},
        {"best": {"x": 1}},
        {"progress": {"x": 1}},
        {"history": [1]},
        {"state_dict": {}},
        {"state_dict": {"conv1.weight": 1}},
        {"network": {"model": "lenet-5", "num_classes": 10, "arguments": {}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [False, True])
def test_what_is_no_checkpoint_of_the_run_is_refused(
    images, trained, tmp_path, capsys, edit, named
):
    output = tmp_path / ("other" if named else "x")
    path = tmp_path / "x" / POINT / "last.pt"
    path.parent.mkdir(parents=True)
    torch.save({**resumable(trained), **edit}, path)
    before = path.read_bytes()
    flags = ["--resume", str(path)] if named else []
    assert scale(images, output, *flags) == 5
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "last.pt" in shown.err
    assert path.read_bytes() == before


def test_a_run_begun_from_another_goes_on_where_it_was(images, trained, tmp_path, capsys):
    flags = ["--resume", str(trained / POINT / "last.pt")]
    assert scale(images, tmp_path, *flags, "--epochs", "3") == 0
    assert "after epoch 2" in capsys.readouterr().out
    last = tmp_path / POINT / "last.pt"
    written = last.stat().st_mtime_ns
    assert scale(images, tmp_path, *flags, "--epochs", "3") == 0
    assert "after epoch 3" in capsys.readouterr().out
    assert last.stat().st_mtime_ns == written and not list(tmp_path.glob("*.old1"))


def test_a_restarted_job_goes_on_though_it_was_to_start_over(
    images, trained, tmp_path, capsys, monkeypatch
):
    output = shutil.copytree(trained, tmp_path / "x")
    # (job, how often it was started before, runs set aside in the end)
    for job, restarts, old in ((1, 0, 1), (2, 1, 2), (2, 0, 3), (2, 1, 3)):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        assert scale(images, output, "--no-resume") == 0
        assert len(list(output.glob("*.old*"))) == old
    assert "after epoch 2" in capsys.readouterr().out


def test_a_damaged_run_gives_way_to_the_one_that_is_named(images, trained, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "x")
    for file in (output / POINT).glob("last*.pt"):
        file.write_bytes(b"rot")
    good = trained / POINT / "last.pt"
    assert scale(images, output, "--resume", str(good)) == 0
    assert f"resuming {good}" in capsys.readouterr().out
    assert len(list(output.glob("*.old1"))) == 1


def quantize(trained, output, *flags):
    source = ["--model-dict", str(trained / "best_model.pt"), *EC2T.split()]
    return run_quantization.main([*source, "--output", str(output), *flags])


def test_quantization_goes_on_with_the_same_layers_and_phases(images, trained, tmp_path, capsys):
    command = ["--data-path", str(images), "--epochs", "1"]
    assert quantize(trained, tmp_path, *command, "--retrain-epochs", "1") == 0
    last = next(tmp_path.glob("*/last.pt"))
    before = last.read_bytes()
    again = ["--resume-override", "--data-path", str(images)]
    capsys.readouterr()
    for flags, code, words in (
        (["--epochs", "3", "--retrain-epochs", "1"], 2, "--retrain-epochs"),
        (["--epochs", "1", "--retrain-epochs", "3", "--ternarize", "conv1"], 5, "--ternarize"),
        (["--epochs", "1", "--levels", "5", "--resume", str(last)], 5, "--levels"),
    ):
        assert quantize(trained, tmp_path, *again, *flags) == code
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert last.read_bytes() == before


def test_gradients_that_no_scale_helps_end_the_run():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    network[1].weight.register_hook(lambda gradient: gradient * torch.nan)
    sgd = make_sgd(network, lr=0.1, momentum=0.9, weight_decay=0.0)
    recipe = Recipe(amp="fp16")
    step = TrainStep(network, network=network, optimizer=sgd, classes=3, recipe=recipe)
    before = network[1].weight.detach().clone()
    for number in range(CHECK_EVERY):
        step(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]), seed=number, number=number)
    assert 0 <= int(step.first_bad) < 20  # 2^16, the first scale, was halved below 1
    assert torch.equal(network[1].weight, before)


FAILING = """
import torch
from torch import nn

class Failing(nn.Module):
    steps = 0

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x):
        self.steps += self.training
        if self.steps == 3:
            raise RuntimeError("a mistake in the network")
        return self.layer(x.mean((2, 3)))

def make(num_classes):
    return Failing(num_classes)
"""


def test_an_unforeseen_error_ends_the_process_though_others_read_images(tmp_path):
    save_tree(tmp_path / "images", train=8, size=72)
    (tmp_path / "failing.py").write_text(FAILING)
    command = [sys.executable, str(ROOT / "run_compound_scaling.py"), "--dataset", "ImageFolder"]
    command += ["--data-path", str(tmp_path / "images"), "--image-size", "72", "--batch-size", "4"]
    command += ["--model", "failing:make", "--no-cuda", "--workers", "2", "--epochs", "2"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "a mistake in the network" in done.stderr


def test_memory_that_is_not_there_is_said_in_one_line():
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore"
    error = out_of_memory(torch.OutOfMemoryError(message))
    assert isinstance(error, UserError) and "--batch-size" in str(error)
    assert "\n" not in str(error)
    assert out_of_memory(RuntimeError("size mismatch")) is None
    with pytest.raises(RuntimeError) as real:
        torch.empty(10**16)
    assert "can't allocate memory" in str(out_of_memory(real.value))
    assert "out of memory" in str(out_of_memory(MemoryError()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_several_processes_waits_to_be_asked_for(number):
    from model_compound_scaling.machine import signals

    with signals.listening():
        signals.defer()
        os.kill(os.getpid(), number)
        assert signals.received() == number
    with signals.listening(), pytest.raises(signals.Stopped):
        os.kill(os.getpid(), number)  # alone again


def test_an_array_task_without_work_says_what_is_missing(images, tmp_path, capsys):
    assert scale(images, tmp_path / "new", "--shard", "2/2") == 0
    assert f"not trained yet: {POINT}" in capsys.readouterr().out
    assert (tmp_path / "new" / "results.csv").exists()


def test_metrics_are_as_before_a_resume(images, trained, tmp_path):
    output = shutil.copytree(trained, tmp_path / "x")
    assert scale(images, output, "--resume-override", "--epochs", "3") == 0
    lines = (output / POINT / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
