"""What the flags and a checkpoint say of images, in all three scripts."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import POINT, TRAINING, call, save_images, save_network, save_tree, scale
from torch import nn

import run_compound_scaling
import run_quantization
import run_scoring
from model_compound_scaling.machine.place import find_place
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec

ROOT = Path(__file__).parents[2]
score = partial(call, run_scoring.main)
quantize = partial(call, run_quantization.main)
# fmt: off
QUANTIZING = ["--batch-size", "8", "--no-cuda", "--workers", "0", "--epochs", "1",
              "--retrain-epochs", "0", "--ini-c-divrs", "0.3", "--lambda-max-divrs", "0"]
# fmt: on


def rename(images: Path, target: Path, *names: str) -> Path:
    """A copy of the folders dark/ and light/ under other names."""
    for split in ("train", "val"):
        for old, new in zip(("dark", "light"), names, strict=True):
            shutil.copytree(images / split / old, target / split / new)
    return target


def accuracy(out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith("evaluated"))


# Classes


@pytest.fixture
def reordered(trained, tmp_path) -> Path:
    """The same network with its classes in the other order: as if the folders' names had had it."""
    state = torch.load(trained / "best_model.pt", weights_only=True)
    state["data"]["class_names"].reverse()
    for name in ("linear.weight", "linear.bias"):
        state["state_dict"][name] = state["state_dict"][name].flip(0)
    torch.save(state, tmp_path / "reordered.pt")
    return tmp_path / "reordered.pt"


@pytest.mark.parametrize("form", ["--thin", "--export", None])
def test_classes_in_another_order_are_evaluated_alike(
    images, trained, reordered, tmp_path, capsys, form
):
    flags = ["--no-cuda", "--no-halfprecision", "--eval", "--data-path", images]
    code, expected, _ = score(capsys, "--t-model", trained / "best_model.pt", *flags)
    assert code == 0 and "numbered" not in expected
    if form:
        more = ["--export-precision", "fp32"] if form == "--export" else []
        assert score(capsys, "--t-model", reordered, form, tmp_path / "other", *more)[0] == 0
        reordered = tmp_path / "other"
    code, out, _ = score(capsys, "--t-model", reordered, *flags, "--predict", images / "val/light")
    assert code == 0 and accuracy(out) == accuracy(expected)
    assert out.startswith("2 of 2 classes are numbered as in the checkpoint")
    assert all("  light " in line for line in out.splitlines()[-8:])


def test_other_classes_stop_every_way_of_using_them(images, trained, tmp_path, capsys):
    other = rename(images, tmp_path / "other", "cat", "dog")
    model, where = trained / "best_model.pt", ["--data-path", other]
    ways = [
        (score, ["--t-model", model, "--no-cuda", *where, "--eval"]),
        (score, ["--t-model", model, "--no-cuda", *where, "--predict", other / "val"]),
        (quantize, ["--model-dict", model, *QUANTIZING, *where, "--output", tmp_path / "q"]),
        (partial(call, run_compound_scaling.main),
         [*TRAINING.split(), "--workers", "0", "--epochs", "3", *where, "--output",
          tmp_path / "s", "--resume", trained / POINT / "last.pt"]),
    ]  # fmt: skip
    for way, flags in ways:
        code, _, err = way(capsys, *flags)
        assert (code, err.count("\n")) == (4, 1), err
        assert "--ignore-class-names" in err
        assert "'cat', 'dog'" in err and "'dark', 'light'" in err, err
        code, out, err = way(capsys, *flags, "--ignore-class-names")
        assert code == 0, err
    assert "after epoch 2" in out


def test_a_resumed_run_s_classes_keep_their_numbers(images, trained, tmp_path, capsys):
    """Stage 1 has no checkpoint whose order it could take: it says so."""
    other = rename(images, tmp_path / "other", "light", "dark")  # the same names, other images
    state = torch.load(trained / POINT / "last.pt", weights_only=True)
    state["data"]["class_names"].reverse()
    torch.save(state, tmp_path / "last.pt")
    flags = [*TRAINING.split(), "--workers", "0", "--epochs", "3", "--output", tmp_path / "s"]
    flags += ["--data-path", other, "--resume", tmp_path / "last.pt"]
    code, _, err = call(run_compound_scaling.main, capsys, *flags)
    assert (code, err.count("\n")) == (4, 1) and "--ignore-class-names" in err
    assert call(run_compound_scaling.main, capsys, *flags, "--ignore-class-names")[0] == 0


def test_stage_2_goes_on_in_the_checkpoint_s_order(images, reordered, tmp_path, capsys):
    flags = ["--model-dict", reordered, *QUANTIZING, "--data-path", images]
    code, out, _ = quantize(capsys, *flags, "--output", tmp_path / "q")
    assert code == 0 and out.startswith("2 of 2 classes")
    best = torch.load(tmp_path / "q" / "Ternary_best_acc.pt", weights_only=True)
    assert best["data"]["class_names"] == ["light", "dark"]
    flags[flags.index("--epochs") + 1] = "2"
    code, out, err = quantize(capsys, *flags, "--output", tmp_path / "q", "--resume-override")
    assert code == 0 and "resuming" in out, err


@pytest.mark.slow
def test_two_processes_number_classes_alike(images, reordered, tmp_path):
    """And the first one says so."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "run_quantization.py"]
    flags = ["--model-dict", reordered, *QUANTIZING, "--data-path", images]
    command = [sys.executable, *launcher, *flags, "--output", tmp_path / "q"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 classes are numbered") == 1
    alone = [*QUANTIZING, "--data-path", images, "--output", tmp_path / "one"]
    command = [sys.executable, "run_quantization.py", "--model-dict", reordered, *alone]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    figures = [
        torch.load(tmp_path / run / "Ternary_best_acc.pt", weights_only=True)["figures"]
        for run in ("q", "one")
    ]
    assert figures[0]["val_top1"] == figures[1]["val_top1"]


# Image size


class AnySize(nn.Module):
    """A network that takes images of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).relu().mean((2, 3)))


def any_size(num_classes: int) -> nn.Module:
    return AnySize(num_classes)


OWN = f"{__name__}:any_size"
SIZES = [
    (OWN, "CIFAR10", 32), (OWN, "CIFAR100", 32), (OWN, "Shapes", 32), (OWN, "MNIST", 28),
    (OWN, "FashionMNIST", 28), (OWN, "ImageNet", 224), ("torchvision:resnet18", "CIFAR10", 32),
    ("cifar_micronet", "CIFAR10", 32), ("resnet20", "MNIST", 32), ("lenet-5", "CIFAR10", 28),
    ("resnet18", "ImageNet", 224), ("efficientnet-b1", "ImageNet", 240),
    ("image_micronet", "ImageNet", 200),
]  # fmt: skip


@pytest.mark.parametrize(("model", "dataset", "size"), SIZES)
def test_the_input_s_size_without_the_flag(tmp_path, capsys, model, dataset, size):
    """The network of the table's, else the data set's; --dry-run and the count agree."""
    classes = {"CIFAR100": 100, "ImageNet": 1000}.get(dataset, 10)
    flags = ["--model", model, "--dataset", dataset]
    if model == OWN:
        torch.save(any_size(classes).state_dict(), tmp_path / "net.pt")
        code, out, err = score(capsys, "--t-model", tmp_path / "net.pt", *flags)
        assert (code, out.splitlines()[0].split()[-2]) == (0, f"3x{size}x{size}"), err
        larger = score(capsys, "--t-model", tmp_path / "net.pt", *flags, "--image-size", 64)[1]
        assert larger.splitlines()[0].split()[-2] == "3x64x64"
    main = partial(call, run_compound_scaling.main, capsys)
    flags += ["--grid", "1", "1", "--phi", "1"] if "micronet" in model else []
    code, out, err = main(*flags, "--dry-run")
    assert code == 0, err
    assert out == main(*flags, "--dry-run", "--image-size", size)[1]


def test_a_recorded_size_comes_first(tmp_path, capsys):
    for data, expected in (({}, 32), ({"dataset": "MNIST", "image_size": 48}, 48)):
        path = save_network(tmp_path / "net.pt", any_size(10), NetworkSpec(OWN, 10), **data)
        code, out, err = score(capsys, "--t-model", path, "--model", OWN, "--dataset", "Shapes")
        assert (code, out.splitlines()[0].split()[-2]) == (0, f"3x{expected}x{expected}"), err
    torch.save(any_size(10).state_dict(), tmp_path / "raw.pt")
    assert "3x224x224" in score(capsys, "--t-model", tmp_path / "raw.pt", "--model", OWN)[1]


def test_image_folders_need_a_size_in_training(images, tmp_path, capsys):
    flags = ["--dataset", "ImageFolder", "--data-path", images, "--model", OWN]
    code, _, err = call(run_compound_scaling.main, capsys, *flags, "--output", tmp_path)
    assert code == 2 and "--image-size" in err


@pytest.mark.parametrize("data_path", [False, True])
def test_stages_1_and_2_train_at_the_data_set_s_size(tmp_path, capsys, data_path):
    where = ["--data-path", tmp_path] if data_path else []  # Shapes need none
    flags = ["--dataset", "Shapes", "--model", OWN, "--no-cuda", "--augment", "none", *where]
    output = tmp_path / "s"
    code, _, err = call(run_compound_scaling.main, capsys, *flags, "--batch-size", 5000,
                        "--epochs", 1, "--output", output)  # fmt: skip
    assert code == 0, err
    assert torch.load(output / "best_model.pt", weights_only=True)["data"]["image_size"] == 32
    torch.save(any_size(10).state_dict(), tmp_path / "raw.pt")
    code, _, err = quantize(capsys, "--model-dict", tmp_path / "raw.pt", *flags, *QUANTIZING[2:],
                            "--batch-size", 5000, "--ternarize", "features",
                            "--output", tmp_path / "q")  # fmt: skip
    assert code == 0, err
    found = torch.load(tmp_path / "q" / "Ternary_best_acc.pt", weights_only=True)
    assert found["data"]["image_size"] == 32


# Workers


def test_processes_of_one_machine_share_its_cores():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}
    assert (find_place(torchrun).here, find_place(srun).here, find_place({}).here) == (4, 1, 1)


def test_workers_change_neither_results_nor_resuming(tmp_path, capsys):
    images = save_tree(tmp_path / "images", size=80)
    flags = ["--image-size", "72", "--cache-gb", "0"]
    states = []
    for name, workers in (("a", ["--workers", "0"]), ("b", ["--workers", "3"])):
        assert scale(images, tmp_path / name, *flags, "--epochs", "1", *workers) == 0
        best = torch.load(tmp_path / name / "best_model.pt", weights_only=True)
        states.append(best["state_dict"])
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    capsys.readouterr()
    assert scale(images, tmp_path / "a", *flags, "--epochs", "1", "--workers", "2") == 0
    assert "already trained" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["compound_scaling", "quantization", "scoring"])
def test_help_says_the_defaults_without_torch(script):
    command = f"""
import sys, run_{script} as script
try:
    script.main(["--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "(default: the cores that this process may use, at most 4)" in text
    assert "--ignore-class-names" in text


@pytest.mark.slow
def test_evaluation_says_nothing_of_workers(tmp_path):
    """In a process of its own, on one core: torch would warn once per place in a process."""
    images = save_images(tmp_path / "set" / "val" / "a", 3, 80).parents[1]
    save_images(images / "val" / "b", 3, 80)
    spec = NetworkSpec("resnet20", 2)
    save_network(tmp_path / "net.pt", build(spec), spec, dataset="ImageFolder", image_size=72,
                 mean=[0.0] * 3, std=[1.0] * 3)  # fmt: skip
    command = [sys.executable, "run_scoring.py", "--t-model", tmp_path / "net.pt", "--no-cuda",
               "--data-path", images, "--eval"]  # fmt: skip
    one_core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    for more in ([], ["--workers", "3"]):
        done = subprocess.run(
            [*one_core, *map(str, [*command, *more])],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "evaluated on 6 images" in done.stdout
        assert "worker" not in done.stderr
