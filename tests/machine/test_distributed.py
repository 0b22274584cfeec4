"""Several processes: who is who, and that they compute what one would."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.batches import Part, Schedule
from data.errors import UserError
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.processes import Place, checksum, find_place, rendezvous

ROOT = Path(__file__).parents[2]


def test_places():
    assert find_place({}) == Place(0, 1, 0)
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}
    assert find_place(torchrun) == find_place({**srun, **torchrun}) == Place(5, 8, 1)
    assert find_place(srun) == Place(3, 4, 2)
    # a batch script outside srun is one process, however many tasks its job has
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Place()
    for wrong in ({**torchrun, "RANK": "8"}, {**torchrun, "WORLD_SIZE": "many"}):
        with pytest.raises(UserError, match="WORLD_SIZE"):
            find_place(wrong)


def test_meeting_points():
    nodes = {"gpu[03-05,9],cpu1": "gpu03", "node7": "node7", "a-1,b": "a-1"}
    for text, host in nodes.items():
        environment = {"SLURM_STEP_NODELIST": text, "SLURM_JOB_ID": "40123"}
        assert rendezvous(environment) == f"tcp://{host}:20123"
    assert rendezvous({"MASTER_ADDR": "h", "MASTER_PORT": "5"}) == "tcp://h:5"


@pytest.mark.parametrize("samples", [100, 103, 98, 97])
def test_parts_make_up_the_batches_of_one(samples):
    def batches(part, train=True):
        schedule = Schedule(samples, batch_size=8, train=train, seed=3, part=part)
        return len(schedule), list(schedule.epoch(1)), schedule

    for train in (False, True):
        count, whole, _ = batches(Part(0, 1), train)
        parts = [batches(Part(i, 2), train) for i in (0, 1)]
        assert parts[0][0] == parts[1][0]
        for i in range(parts[0][0]):
            both = torch.cat([part[1][i] for part in parts])
            assert sorted(both.tolist()) == sorted(whole[i].tolist())
            assert parts[0][2].images_in(i) == len(whole[i])
        # BatchNorm needs two images in each process: 98 leaves one for each of two, 97 one in all
        assert parts[0][0] == (12 if train and samples in (97, 98) else 13)
        assert count == (12 if train and samples == 97 else 13)


def test_checksums_see_any_bit_and_the_order():
    values = torch.randn(1000)
    other = values.clone()
    other.view(torch.int32)[500] ^= 1
    swapped = values.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    sums = {int(checksum(v)) for v in (values, other, swapped)}
    assert len(sums) == 3
    assert checksum(torch.tensor([True, False])) != checksum(torch.tensor([False, True]))


def test_alone_everything_is_local():
    assert (processes.all_reduce_max(7), processes.world_size(), processes.is_main()) == (
        7,
        1,
        True,
    )
    assert processes.from_main(lambda: "x") == "x"


def run(processes, script, *flags):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / script), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


SCALING = "--dataset Shapes --image-size 28 --model lenet-5 --batch-size 1000 --lr 0.01 --no-cuda"


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """Ten steps of LeNet-5, which has no BatchNorm, in one and in two processes."""
    folder = tmp_path_factory.mktemp("scaled")
    flags = [*SCALING.split(), "--epochs", "1", "--output"]
    shown = [run(n, "run_compound_scaling.py", *flags, str(folder / str(n))) for n in (1, 2)]
    assert [one.returncode for one in shown] == [0, 0], shown[1].stderr
    return folder, shown


def test_two_processes_are_one(scaled):
    folder, shown = scaled
    one, two = (
        torch.load(folder / n / "lenet-5" / "last.pt", weights_only=True) for n in ("1", "2")
    )
    for name, value in one["state_dict"].items():
        assert (value - two["state_dict"][name]).abs().max() <= 1e-6
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-6)
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
    # the second process neither prints nor writes
    lines = [one.stdout.splitlines() for one in shown]
    assert len(lines[0]) == len(lines[1]) and "2 processes" in lines[1][0]


EC2T = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.manual_seed(0)
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.devices import for_processes, lay_out
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import default_spec
from model_compound_scaling.training.step import TrainStep
from model_quantization.layer_selection import ternarized_names
from model_quantization.two_phases import make_optimizer
from model_quantization.ec2t.ternarizer import Ternarizer

device = torch.device("cpu")
processes.start(device)
rank = processes.rank()
torch.manual_seed(rank)  # what process 0 has is what counts
network = lay_out(build(default_spec("resnet20", 10)), device)
ternarizer = Ternarizer(network, ternarized_names(network, family="resnet"), initial_scale=0.3,
                        gamma=0.15)
first = torch.cat([c.flatten() for c in ternarizer.codes()])
optimizer = make_optimizer(network, ternarizer, {{"lr": 1e-3, "lr2": 1e-4, "weight_decay": 0.0}})
step = TrainStep(for_processes(network, device), network=network, optimizer=optimizer, classes=10,
                 prepare=ternarizer.prepare_step, finish=ternarizer.finish_step)
for number in range(20):
    generator = torch.Generator().manual_seed(2 * number + rank)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    step(images, torch.randint(0, 10, (4,), generator=generator), seed=number, number=number)
layers = ternarizer.layers
processes.require_equal([layers.codes(), layers.latent, layers.centroids], "codes")
processes.require_equal(list(p for p in network.parameters()), "weights")
codes = torch.cat([c.flatten() for c in ternarizer.codes()])
torch.save({{"codes": codes, "first": first, "latent": layers.latent.detach()}},
           f"{folder}/{{rank}}.pt")
if {differ}:
    layers.latent.data[0, 0] += rank
    processes.require_equal([layers.latent], "latents")
processes.stop()
"""


@pytest.mark.parametrize("differ", [False, True])
def test_ternary_codes_are_the_same_in_all_processes(tmp_path, differ):
    script = tmp_path / "steps.py"
    script.write_text(EC2T.format(root=str(ROOT), folder=tmp_path, differ=differ))
    done = run(2, script)
    assert done.returncode == differ, done.stderr
    assert ("latents differ between the processes" in done.stderr) == differ
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["codes"], a["first"])  # so that there was something to agree on


def test_quantization_in_two_processes(scaled, tmp_path):
    folder, _ = scaled
    flags = "--ini-c-divrs 0.3 --lambda-max-divrs 0.15 --epochs 1 --retrain-epochs 1 --no-cuda"
    source = ["--model-dict", str(folder / "1" / "best_model.pt"), "--batch-size", "500"]
    done = run(2, "run_quantization.py", *source, *flags.split(), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = next(tmp_path.glob("*/metrics.jsonl")).read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["ternary", "frozen"]


def start(*flags):
    """Two processes of stage 1, as srun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", str(ROOT / "run_compound_scaling.py"), *flags]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **meeting, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_a_signal_to_one_process_stops_both_and_loses_nothing(tmp_path):
    flags = [*SCALING.split(), "--epochs", "4", "--output"]
    whole = start(*flags, str(tmp_path / "whole"))
    assert [process.wait(300) for process in whole] == [0, 0]
    stopped = start(*flags, str(tmp_path / "stopped"))
    while "epoch 1" not in stopped[0].stdout.readline():  # it trains
        assert stopped[0].poll() is None
    stopped[1].send_signal(signal.SIGTERM)  # not the one that writes
    shown = [process.communicate(timeout=300)[1] for process in stopped]
    assert [process.returncode for process in stopped] == [75, 75], shown
    assert "stopped by SIGTERM" in shown[0] and not shown[1]
    again = start(*flags, str(tmp_path / "stopped"))
    lines = again[0].communicate(timeout=300)[0]
    assert again[1].wait(300) == again[0].returncode == 0 and "resuming" in lines
    one, two = (
        torch.load(tmp_path / name / "lenet-5" / "last.pt", weights_only=True)
        for name in ("whole", "stopped")
    )
    assert one["history"] == two["history"]
    assert all(torch.equal(v, two["state_dict"][name]) for name, v in one["state_dict"].items())


def test_a_batch_that_cannot_be_shared_is_said(tmp_path):
    flags = [*SCALING.split(), "--batch-size", "501", "--output", str(tmp_path / "x")]
    done = run(2, "run_compound_scaling.py", *flags)
    assert done.returncode != 0
    assert "run_compound_scaling.py: error: --batch-size 501" in done.stderr
    assert not (tmp_path / "x").exists()
