"""Several processes: who is who, and that they compute what one would."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structured_networks
import torch
from helpers import MICRONET

import run_compound_scaling
import run_quantization
from data.batches import Part, Schedule
from data.errors import UserError
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.devices import for_processes, lay_out
from model_compound_scaling.machine.place import Place, find_place, rendezvous
from model_compound_scaling.machine.processes import checksum
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.logits import Logits
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.step import TrainStep
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.layer_selection import ternarized_names
from model_quantization.two_phases import make_optimizer

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


class Together:
    """The same work in two processes that `fork` starts as srun would."""

    def __init__(self, fork, folder: Path, work: Callable[[int], int]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}

        def body(rank: int) -> None:
            os.environ.update(meeting, RANK=str(rank))
            for number, name in ((1, "out"), (2, "err")):
                with (folder / f"{name}{rank}").open("w") as file:
                    os.dup2(file.fileno(), number)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            os._exit(work(rank))

        self.processes = [fork(lambda rank=rank: body(rank)) for rank in (0, 1)]

    def codes(self) -> list[int]:
        """The two exit codes, when both have ended."""
        return [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in self.processes]

    def shown(self, name: str) -> list[str]:
        """What each wrote to "out" or "err"."""
        return [(self.folder / f"{name}{rank}").read_text() for rank in (0, 1)]


SCALING = "--dataset ImageFolder --image-size 28 --model lenet-5 --batch-size 8 --lr 0.01 --no-cuda"


PRINTING = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from model_compound_scaling.machine.processes import silent
c = ctypes.CDLL(None)
print("before")
with silent(1):
    c.puts(b"[Gloo] Rank 0 is connected to 1 peer ranks.")  # C buffers it where stdout is a pipe
    os.write(1, b"[Gloo] at once\\n")
    os.write(2, b"an error\\n")
print("after")
c.puts(b"and C again")
"""


def test_what_libraries_print_while_processes_meet_stays_out_of_the_log():
    command = [sys.executable, "-c", PRINTING.format(root=str(ROOT))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["after", "and C again", "before"]
    assert done.stderr == "an error\n"


@pytest.fixture(scope="module")
def flags(images):
    """Six steps an epoch of LeNet-5, which has no BatchNorm."""
    return [*SCALING.split(), "--data-path", str(images), "--epochs", "1", "--output"]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """An epoch in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_compound_scaling.main([*flags, str(folder)]) == 0
    return folder


def last(folder, network="lenet-5"):
    return torch.load(folder / network / "last.pt", weights_only=True)


def assert_as_one(found, expected):
    """The same epochs, but for the order in which sums are taken."""
    for name, value in expected["state_dict"].items():
        assert (value - found["state_dict"][name]).abs().max() <= 1e-6
    for a, b in zip(found["history"], expected["history"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-6)
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)


def ours(text):
    """Lines, without those in which Gloo, in torch 2.10, says whom it met."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


def assert_said_once(text, folder):
    """What one process alone would print: all that is in the log, and the table."""
    lines = ours(text)
    log = (folder / "lenet-5" / "logfile.txt").read_text().splitlines()
    assert "2 processes" in lines[0] and lines[: len(log)] == [x.split(" ", 2)[2] for x in log]
    assert len(set(lines)) == len(lines) > len(log)


def test_two_processes_are_one(flags, alone, fork, tmp_path):
    two = Together(fork, tmp_path, lambda _: run_compound_scaling.main([*flags, str(tmp_path)]))
    assert two.codes() == [0, 0], two.shown("err")
    assert_as_one(last(tmp_path), last(alone))
    first, second = two.shown("out")
    assert_said_once(first, tmp_path)
    assert not ours(second)
    [entry] = json.loads((tmp_path / "lenet-5" / "environment.json").read_text())
    assert entry["processes"] == len(entry["devices"]) == 2


def torchrun(script, *flags):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(ROOT / script), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one(flags, alone, tmp_path):
    done = torchrun("run_compound_scaling.py", *flags, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_as_one(last(tmp_path), last(alone))
    assert_said_once(done.stdout, tmp_path)


@pytest.mark.slow
def test_a_mistake_is_said_under_torchrun(flags, tmp_path):
    done = torchrun("run_compound_scaling.py", *flags, str(tmp_path / "x"), "--batch-size", "7")
    assert done.returncode != 0
    assert "run_compound_scaling.py: error: --batch-size 7" in done.stderr
    assert not (tmp_path / "x").exists()


def stepped(rank, form, steps=6):
    """Steps of a network of one's own with all images, or one of two processes' half of them."""
    device, world = torch.device("cpu"), processes.world_size()
    torch.manual_seed(0)
    network = lay_out(build(NetworkSpec(f"structured_networks:{form}", 5)), device)
    sgd = make_sgd(network, lr=0.1, momentum=0.9, weight_decay=1e-2)
    step = TrainStep(for_processes(Logits(network, 5), device), network=network, optimizer=sgd,
                     classes=5)  # fmt: skip
    for number in range(steps):
        batch = structured_networks.images(8, seed=number)
        labels = torch.arange(8) % 5
        step(batch[rank::world], labels[rank::world], seed=number, number=number)
    processes.require_equal(list(network.parameters()), "weights")
    assert int(step.first_bad) == -1
    return network.state_dict()


EVERYWHERE = ("always", "never", "at_first", "later")  # used in all processes or in none
WAYS = [*EVERYWHERE, "in_one_process", "in_turns", "logits_first", "in_a_list", "in_an_object"]


def test_parameters_without_gradients_are_as_in_one_process(fork, tmp_path):
    """Weight decay and momentum leave them alone; who does not use one hears from who does."""
    expected = {form: stepped(0, form) for form in WAYS}

    def work(rank):
        processes.start(torch.device("cpu"))
        found = {form: stepped(rank, form) for form in WAYS}
        torch.save(found, tmp_path / f"{rank}.pt")
        processes.stop()
        return 0

    two = Together(fork, tmp_path, work)
    assert two.codes() == [0, 0], two.shown("err")
    assert two.shown("err") == ["", ""]
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    for form, state in expected.items():
        for name, value in state.items():
            if "extra" not in name or form in EVERYWHERE:
                assert (found[form][name] - value).abs().max() <= 1e-6, (form, name)
    at_first = build_again("at_first")
    for form, changed in (("never", False), ("at_first", True), ("in_turns", True)):
        extra = found[form]["extra.weight"]
        assert torch.equal(extra, at_first["extra.weight"]) != changed


def build_again(form):
    torch.manual_seed(0)
    return build(NetworkSpec(f"structured_networks:{form}", 5)).state_dict()


@pytest.mark.parametrize("form", ["in_a_list", "later"])
def test_two_processes_train_a_network_with_unused_parameters(form, images, fork, tmp_path):
    flags = [*SCALING.split(), "--data-path", str(images), "--epochs", "1"]
    flags += ["--model", f"structured_networks:{form}", "--image-size", "16", "--output"]
    assert run_compound_scaling.main([*flags, str(tmp_path / "1")]) == 0
    command = [*flags, str(tmp_path / "2")]
    two = Together(fork, tmp_path, lambda _: run_compound_scaling.main(command))
    assert two.codes() == [0, 0], two.shown("err")
    assert two.shown("err") == ["", ""]
    one, other = (last(tmp_path / name, f"structured_networks-{form}") for name in ("1", "2"))
    assert_as_one(other, one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_two_processes_train_googlenet_with_its_auxiliary_heads(images, fork, tmp_path):
    flags = [*SCALING.split(), "--data-path", str(images), "--epochs", "1"]
    flags += ["--model", "torchvision:googlenet", "--image-size", "32", "--output", str(tmp_path)]
    two = Together(fork, tmp_path, lambda _: run_compound_scaling.main(flags))
    assert two.codes() == [0, 0], two.shown("err")


def agree(rank, folder):
    """Ternary steps of a network, and then what the processes have in common, in a file each."""
    device = torch.device("cpu")
    processes.start(device)
    torch.manual_seed(rank)  # what process 0 has is what counts
    network = lay_out(build(MICRONET), device)
    names = ternarized_names(network, family="micronet")
    ternarizer = Ternarizer(network, names, initial_scale=0.3, gamma=0.15)
    first = torch.cat([c.flatten() for c in ternarizer.codes()])
    optimizer = make_optimizer(ternarizer, lr=1e-3, lr2=1e-4, weight_decay=0.0)
    step = TrainStep(for_processes(network, device), network=network, optimizer=optimizer,
                     classes=10, prepare=ternarizer.prepare_step,
                     finish=ternarizer.finish_step)  # fmt: skip
    for number in range(20):
        generator = torch.Generator().manual_seed(2 * number + rank)
        images = torch.randn(4, 3, 16, 16, generator=generator)
        step(images, torch.randint(0, 10, (4,), generator=generator), seed=number, number=number)
    layers = ternarizer.layers
    processes.require_equal([layers.codes(), layers.latent, layers.centroids], "codes")
    processes.require_equal(list(network.parameters()), "weights")
    codes = torch.cat([c.flatten() for c in ternarizer.codes()])
    found = {"codes": codes, "first": first, "latent": layers.latent.detach()}
    torch.save(found, folder / f"{rank}.pt")
    layers.latent.data[0, 0] += rank
    with pytest.raises(RuntimeError, match="latents differ between the processes"):
        processes.require_equal([layers.latent], "latents")
    processes.stop()
    return 0


def test_ternary_codes_are_the_same_in_all_processes_and_a_difference_is_seen(fork, tmp_path):
    two = Together(fork, tmp_path, lambda rank: agree(rank, tmp_path))
    assert two.codes() == [0, 0], two.shown("err")
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["codes"], a["first"])  # so that there was something to agree on


MORE = ["", "--amp bf16 --channels-last --teacher self --distill 0.5", "--act-bits 4"]


@pytest.mark.parametrize("more", MORE)
def test_quantization_in_two_processes(images, alone, fork, tmp_path, more):
    flags = "--ini-c-divrs 0.3 --lambda-max-divrs 0.15 --epochs 1 --retrain-epochs 1 --no-cuda"
    source = ["--model-dict", str(alone / "best_model.pt"), "--data-path", str(images)]
    command = [*source, "--batch-size", "8", *flags.split(), *more.split()]
    command += ["--output", str(tmp_path)]
    two = Together(fork, tmp_path, lambda _: run_quantization.main(command))
    assert two.codes() == [0, 0], two.shown("err")
    lines = next(tmp_path.glob("*/metrics.jsonl")).read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [figures["phase"] for figures in epochs] == ["ternary", "frozen"]
    steps = [layer["step"] for layer in epochs[-1].get("activations", [])]
    assert len(steps) == 4 * ("--act-bits" in more) and all(step > 0 for step in steps)


def test_a_signal_to_one_process_stops_both_and_loses_nothing(flags, fork, tmp_path, monkeypatch):
    original = TrainStep.__call__

    def signalled(self, *args, number, **kwargs):
        if number == 8 and processes.rank() == 1:  # in epoch 2; not the process that writes
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, number=number, **kwargs)

    def both(name, shown=""):
        command = [*flags, str(tmp_path / name), "--epochs", "4"]
        work = lambda _: run_compound_scaling.main(command)  # noqa: E731
        return Together(fork, tmp_path / f"{name}{shown}", work)

    whole = both("whole")
    assert whole.codes() == [0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", signalled)
        stopped = both("stopped")
        assert stopped.codes() == [75, 75], stopped.shown("err")
    first, second = stopped.shown("err")
    assert "stopped by SIGTERM" in first and not second
    again = both("stopped", "again")
    assert again.codes() == [0, 0] and "resuming" in again.shown("out")[0]
    one, two = (last(tmp_path / name) for name in ("whole", "stopped"))
    assert one["history"] == two["history"]
    assert all(torch.equal(v, two["state_dict"][name]) for name, v in one["state_dict"].items())


def test_a_batch_that_cannot_be_shared_is_said(flags, fork, tmp_path):
    command = [*flags, str(tmp_path / "x"), "--batch-size", "7"]
    two = Together(fork, tmp_path, lambda _: run_compound_scaling.main(command))
    assert two.codes() == [2, 2]
    assert two.shown("err")[0].startswith("run_compound_scaling.py: error: --batch-size 7")
    assert not (tmp_path / "x").exists()
