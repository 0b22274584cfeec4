"""What happens around a training that must not be lost: full disks, vanished folders, killed
workers, readers that leave, NaN, clocks that are set back."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import POINT, TRAINING, save_tree, scale
from torch.utils._python_dispatch import TorchDispatchMode

import run_compound_scaling
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.step import TrainStep

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
STEPS = 6  # of each epoch
OFTEN = ("--checkpoint-every", "2steps")


def state(output, name="last.pt"):
    return torch.load(output / POINT / name, weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def at_step(monkeypatch, when, action):
    """Call `action(step, images)` before step `when` of the run."""
    original = TrainStep.__call__

    def call(self, images, labels, *, number, **kwargs):
        if number == when:
            action(self, images)
        return original(self, images, labels, number=number, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", call)


def test_a_full_disk_leaves_the_old_checkpoint_and_ends_with_7(
    images, tmp_path, fork, capfd, monkeypatch
):
    assert scale(images, tmp_path, "--epochs", "1") == 0
    old = (tmp_path / POINT / "last.pt").read_bytes()

    def fill_disk(step, images):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, len(old) // 2))

    at_step(monkeypatch, STEPS, fill_disk)

    def body():
        os._exit(scale(images, tmp_path, "--resume-override", *OFTEN))

    _, status = os.waitpid(fork(body), 0)
    shown = capfd.readouterr()
    assert os.waitstatus_to_exitcode(status) == 7
    assert "epoch 2" in shown.out and "training goes on" in shown.out
    assert "last.pt" in shown.err and "too large" in shown.err
    assert (tmp_path / POINT / "last.pt").read_bytes() == old
    assert scale(images, tmp_path, "--resume-override") == 0


def test_a_save_that_fails_once_is_made_up_for(images, trained, tmp_path, monkeypatch, capsys):
    from model_compound_scaling.checkpoints.atomic_save import write_generation
    from model_compound_scaling.runs import run

    calls = []

    def fail_once(content, path):
        calls.append(path)
        if len(calls) == 2:
            raise run.DiskError(f"cannot write {path}: No space left on device")
        write_generation(content, path)

    monkeypatch.setattr(run, "write_generation", fail_once)
    assert scale(images, tmp_path, *OFTEN) == 0
    assert "No space left" in capsys.readouterr().out
    assert equal(state(tmp_path), state(trained))


def test_the_output_folder_vanishes(images, tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, STEPS + 2, lambda step, images: shutil.rmtree(tmp_path / "runs"))
    assert scale(images, tmp_path / "runs", *OFTEN) == 7
    shown = capsys.readouterr()
    assert "epoch 2" in shown.out
    assert "last.pt" in shown.err


@pytest.mark.parametrize("poison", ["activations", "gradient"])
def test_nothing_is_updated_from_nan(images, tmp_path, monkeypatch, capsys, poison):
    def activations(step, images):
        images.fill_(torch.nan)

    def gradient(step, images):
        parameter = step.parameters[-1]
        parameter.register_hook(lambda grad: torch.full_like(grad, torch.inf))

    before = {}

    def remember(step, images):
        before.update({k: p.clone() for k, p in step.network.named_parameters()})
        {"activations": activations, "gradient": gradient}[poison](step, images)
        before["step"] = step

    at_step(monkeypatch, STEPS + 4, remember)
    assert scale(images, tmp_path) == 6
    message = capsys.readouterr().err
    assert "step 5 of epoch 2" in message and "last.pt" in message
    network = before.pop("step").network
    assert all(torch.equal(before[k], p) for k, p in network.named_parameters())
    saved = torch.load(tmp_path / POINT / "last.pt", weights_only=True)
    assert saved["progress"] is None and len(saved["history"]) == 1
    monkeypatch.undo()
    assert scale(images, tmp_path) == 0


def test_a_step_waits_for_nothing():
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.waits += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    sgd = make_sgd(network, lr=0.1, momentum=0.9, weight_decay=0.0)
    step = TrainStep(network, network=network, optimizer=sgd, classes=3)
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    step(images, labels, seed=0, number=0)
    with Watch() as watch:
        step(images, labels, seed=0, number=1)
        assert watch.waits == 0
        int(step.first_bad)
        assert watch.waits == 1  # so that it would have been seen


def test_stdout_closed(images, trained, tmp_path):
    command = [sys.executable, "-u", "run_compound_scaling.py", *TRAINING.split()]
    run = subprocess.Popen(
        [*command, "--epochs", "2", "--data-path", str(images), "--output", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(120) == 0
    assert equal(state(tmp_path), state(trained))
    assert "epoch 2" in (tmp_path / POINT / "logfile.txt").read_text()


@pytest.fixture(scope="module")
def large_images(tmp_path_factory):
    """Images too large to be held in memory: they go through worker processes."""
    return save_tree(tmp_path_factory.mktemp("large"), train=16, val=4, size=80)


def scale_files(images, output, *flags):
    data = ["--dataset", "ImageFolder", "--data-path", str(images), "--image-size", "72"]
    network = ["--model", "torchvision:mobilenet_v3_small", "--batch-size", "8", "--no-cuda"]
    return run_compound_scaling.main(
        [*data, *network, "--epochs", "2", "--output", str(output), *flags]
    )


def test_a_killed_worker_is_said_and_the_run_goes_on(
    large_images, tmp_path, fork, capfd, monkeypatch
):
    def kill_workers(step, images):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with monkeypatch.context() as patched:
        at_step(patched, 5, kill_workers)
        child = fork(lambda: os._exit(scale_files(large_images, tmp_path, "--workers", "1")))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    message = capfd.readouterr().err
    assert "--workers" in message and "Traceback" not in message
    assert scale_files(large_images, tmp_path, "--workers", "1") == 0
    assert "after epoch 1" in capfd.readouterr().out


def test_two_runs_are_the_same_bits_with_any_number_of_workers(large_images, tmp_path):
    results = []
    for name, workers in (("a", "0"), ("b", "0"), ("c", "2")):
        assert scale_files(large_images, tmp_path / name, "--workers", workers) == 0
        folder = tmp_path / name / "torchvision-mobilenet_v3_small"
        last = torch.load(folder / "last.pt", weights_only=True)
        results.append((last["state_dict"], (folder / "metrics.jsonl").read_text()))
    for tensors, metrics in results[1:]:
        assert equal(tensors, results[0][0]) and metrics == results[0][1]


def test_a_clock_that_is_set_back_changes_nothing(images, trained, tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(now))
    assert scale(images, tmp_path, *OFTEN) == 0
    assert equal(state(tmp_path), state(trained))
    lines = (tmp_path / POINT / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_a_fused_optimizer_heeds_the_flag():
    """What the guard relies on: no change of weights, momentum or step count."""
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    ):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = make([weight])
        weight.grad = torch.ones(3)
        optimizer.step()
        kept, inner = weight.detach().clone(), str(optimizer.state_dict()["state"])
        weight.grad = torch.full((3,), torch.nan)
        optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
        optimizer.step()
        assert torch.equal(weight, kept) and str(optimizer.state_dict()["state"]) == inner
