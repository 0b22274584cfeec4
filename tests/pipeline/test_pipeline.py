"""The three scripts as a user runs them, on a small folder of images, and a user's mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import POINT, TRAINING, call, scale

import run_compound_scaling
import run_quantization
import run_scoring
from model_compound_scaling.checkpoints.atomic_save import write_file
from model_compound_scaling.runs.history import Configuration, History, copy_best
from model_quantization.grid import Row, results_csv, results_table

ROOT = Path(__file__).parents[2]


def quantize(images, output, checkpoint, *flags):
    common = ["--data-path", str(images), "--batch-size", "8", "--no-cuda", "--output", str(output)]
    one = ["--ini-c-divrs", "0.3", "--lambda-max-divrs", "0.15"]
    return run_quantization.main(["--model-dict", str(checkpoint), *common, *one, *flags])


def tensors(path):
    return torch.load(path, weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def run_folder(output):
    return next(path.parent for path in output.glob("*/config.json"))


def test_a_run_folder_holds_all_that_happened(trained):
    run = run_folder(trained)
    names = {path.name for path in run.iterdir()} - {".lock"}
    checkpoints = {"last.pt", "last.previous.pt", "best.pt"}
    logs = {"config.json", "environment.json", "metrics.jsonl", "logfile.txt"}
    assert names == logs | checkpoints
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert json.loads((run / "config.json").read_text())["epochs"] == 2
    content = torch.load(trained / "best_model.pt", weights_only=True)
    assert content["network"]["model"] == "cifar_micronet"
    assert content["data"]["class_names"] == ["dark", "light"]


def test_three_stages_with_files_copied_between_them(trained, images, tmp_path, capsys):
    assert (
        quantize(
            images,
            tmp_path,
            trained / "best_model.pt",
            "--epochs",
            "2",
            "--retrain-epochs",
            "1",
            "--eval",
        )
        == 0
    )
    ternary = tmp_path / "Ternary_best_acc.pt"
    for name, weight in tensors(ternary).items():
        if ".conv" in name:
            assert len(weight.unique()) <= 3
    report = tmp_path / "report.json"
    flags = ["--data-path", str(images), "--eval", "--json", str(report), "--no-cuda"]
    assert run_scoring.main(["--t-model", str(ternary), *flags]) == 0
    scored = json.loads(report.read_text())
    assert scored["published"]["params"] > 0 and 0 <= scored["top1"] <= 100
    assert all(layer["ternary"] for layer in scored["layers"] if ".conv" in layer["name"])


def test_pruning_leaves_ternary_layers_alone(trained, images, tmp_path):
    assert (
        quantize(
            images,
            tmp_path / "t",
            trained / "best_model.pt",
            "--epochs",
            "1",
            "--retrain-epochs",
            "0",
        )
        == 0
    )
    ternary = tmp_path / "t" / "Ternary_best_acc.pt"
    assert (
        quantize(
            images, tmp_path / "p", ternary, "--do-prune", "--epochs", "1", "--retrain-epochs", "1"
        )
        == 0
    )
    before, after = tensors(ternary), tensors(tmp_path / "p" / "Ternary_best_acc.pt")
    convs = [name for name in before if ".conv" in name]
    assert convs and all(torch.equal(before[name], after[name]) for name in convs)
    assert (after["linear.weight"] == 0).any()
    assert len(after["linear.weight"].unique()) > 3


def final_figures(output):
    content = torch.load(output / "Ternary_best_acc.pt", weights_only=True)
    return content["figures"]


@pytest.mark.parametrize(
    ("flag", "target", "figure", "tolerance"),
    [("--target-sparsity", 75, "zeros", 1), ("--target-params", 1000, "scoring_params", 20)],
)
def test_strength_by_goal(images, trained, tmp_path, flag, target, figure, tolerance):
    rates = ("--lr", "1e-2", "--lr2", "1e-3")  # at which codes change much within an epoch
    flags = ("--epochs", "3", "--retrain-epochs", "1", *rates, flag, str(target))
    assert quantize(images, tmp_path, trained / "best_model.pt", *flags) == 0
    reached = final_figures(tmp_path)
    assert abs(reached[figure] - target) <= tolerance and reached["on_target"]
    lines = (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()
    for epoch in map(json.loads, lines):
        assert 0 < epoch["gamma"] < 1 and abs(epoch[figure] - target) <= tolerance
    assert reached["scoring_params"] == scored_params(tmp_path / "Ternary_best_acc.pt", tmp_path)


def scored_params(checkpoint, folder):
    report = folder / "report.json"
    assert run_scoring.main(["--t-model", str(checkpoint), "--json", str(report), "--no-cuda"]) == 0
    return json.loads(report.read_text())["published"]["params"]


def test_zeros_say_of_what_and_agree_wherever_they_are(images, trained, tmp_path, capsys):
    flags = ("--epochs", "1", "--retrain-epochs", "1", "--eval")
    assert quantize(images, tmp_path, trained / "best_model.pt", *flags) == 0
    out = capsys.readouterr().out
    weights = tensors(tmp_path / "Ternary_best_acc.pt")
    quantized = torch.cat([w.flatten() for name, w in weights.items() if ".conv" in name])
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    every = torch.cat([w.flatten() for name, w in weights.items() if not name.endswith(buffers)])
    share, of_all = (100 * float((w == 0).double().mean()) for w in (quantized, every))
    best = final_figures(tmp_path)
    assert (best["zeros"], best["zeros_all"]) == (pytest.approx(share), pytest.approx(of_all))
    row = (tmp_path / "results.csv").read_text().splitlines()[1].split(",")
    assert (row[2], row[4]) == (f"{share:.4f}", f"{of_all:.4f}")
    line = f"zeros {share:.4g} % of quantized weights  zeros_all {of_all:.4g} % of all parameters"
    header, cells = out.splitlines()[-3:-1]
    assert line in out
    for what, percent in (("quantized weights", share), ("all parameters", of_all)):
        end = header.index(f"zeros, % of {what}") + len(f"zeros, % of {what}")
        assert cells[:end].endswith(f" {percent:.2f} %")
    (untrained,) = (line for line in out.splitlines() if "not trained" in line)
    assert (
        untrained.count(" % of quantized weights, ")
        == untrained.count(" % of all parameters)")
        == 1
    )
    report = tmp_path / "report.json"
    source = ["--t-model", str(tmp_path / "Ternary_best_acc.pt"), "--json", str(report)]
    assert run_scoring.main([*source, "--no-cuda"]) == 0
    assert 100 * json.loads(report.read_text())["zeros"] == pytest.approx(of_all)


def test_a_table_with_runs_of_earlier_versions():
    figures = {"val_top1": 90.0, "zeros": 50.0, "scoring_params": 1000.0}
    rows = [Row("old", figures), Row("new", figures | {"zeros_all": 40.0})]
    _, old, new = results_table(rows).splitlines()
    assert old.split()[-2:] == ["1,000", "-"] and new.split()[-3:] == ["1,000", "40.00", "%"]
    assert results_csv(rows).splitlines()[1:] == [
        "old,90.0000,50.0000,1000,", "new,90.0000,50.0000,1000,40.0000"
    ]  # fmt: skip


def test_an_impossible_goal_is_said(images, trained, tmp_path, capsys):
    flags = ("--epochs", "1", "--retrain-epochs", "0", "--target-sparsity", "1")
    assert quantize(images, tmp_path, trained / "best_model.pt", *flags) == 0
    assert "out of reach" in capsys.readouterr().out
    assert not final_figures(tmp_path)["on_target"]


def test_methods_side_by_side(images, trained, tmp_path):
    pareto = tmp_path / "pareto.png"
    for method in (["nearest"], ["ttq", "--ttq-threshold", "0.05", "0.4"]):
        flags = ("--epochs", "1", "--retrain-epochs", "1", "--method", *method)
        assert (
            quantize(
                images, tmp_path, trained / "best_model.pt", *flags, "--plot-pareto", str(pareto)
            )
            == 0
        )
    table = (tmp_path / "results.csv").read_text().splitlines()
    names = "network,top1_percent,zeros_percent,scoring_params,zeros_all_percent,operations,score"
    assert table[0] == names
    zeros = [float(line.split(",")[2]) for line in table[1:]]
    assert len(zeros) == 2 and zeros[0] < zeros[1]  # a higher threshold, more zeros
    assert pareto.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("*nearest_s0.3/best.pt"))) == 1


def test_more_levels(images, trained, tmp_path):
    flags = ("--epochs", "1", "--retrain-epochs", "1", "--levels", "5", "--centroids", "5")
    assert quantize(images, tmp_path, trained / "best_model.pt", *flags) == 0
    for name, weight in tensors(tmp_path / "Ternary_best_acc.pt").items():
        if ".conv" in name:
            assert 3 < len(weight.unique()) <= 5


def test_plots_of_the_ternarization(images, trained, tmp_path):
    flags = ("--epochs", "1", "--retrain-epochs", "1", "--plot-ternarization", "True")
    assert quantize(images, tmp_path, trained / "best_model.pt", *flags) == 0
    assert len(list(tmp_path.glob("*/ternarization/layer*.conv*.weight.png"))) == 6


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    """Interrupt a stage at the n-th start of an epoch, as a kill would."""

    def arm(epochs):
        from model_compound_scaling.training import loop

        original, calls = loop.train_epoch, []

        def train_epoch(*args, **kwargs):
            calls.append(1)
            if len(calls) > epochs:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(loop, "train_epoch", train_epoch)

    yield arm


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_killed_scaling_run_resumes_to_the_same_bits(
    images, trained, tmp_path, killed_after, monkeypatch, done, capsys
):
    killed_after(done)
    with pytest.raises(Killed):
        scale(images, tmp_path, "--epochs", "3")
    monkeypatch.undo()
    assert scale(images, tmp_path, "--epochs", "3") == 0
    assert ("resuming" in capsys.readouterr().out) == (done > 0)
    whole = tmp_path / "whole"
    assert scale(images, whole, "--epochs", "3") == 0
    for name in ("last.pt", "best.pt"):
        assert equal(tensors(run_folder(tmp_path) / name), tensors(run_folder(whole) / name))
    metrics = [(run_folder(o) / "metrics.jsonl").read_text() for o in (tmp_path, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_killed_quantization_resumes_to_the_same_bits(
    images, trained, tmp_path, killed_after, monkeypatch, done
):
    flags = (trained / "best_model.pt", "--epochs", "2", "--retrain-epochs", "2")
    killed_after(done)
    with pytest.raises(Killed):
        quantize(images, tmp_path / "a", *flags)
    monkeypatch.undo()
    for output in ("a", "b"):
        assert quantize(images, tmp_path / output, *flags) == 0
    folders = [run_folder(tmp_path / output) for output in ("a", "b")]
    assert equal(*(tensors(folder / "last.pt") for folder in folders))
    metrics = [(folder / "metrics.jsonl").read_text() for folder in folders]
    assert metrics[0] == metrics[1]
    phases = [json.loads(line)["phase"] for line in metrics[0].splitlines()]
    assert phases == ["ternary", "ternary", "frozen", "frozen"]


def test_a_grid_of_strengths_can_be_extended(images, trained, tmp_path, capsys):
    flags = (trained / "best_model.pt", "--epochs", "1", "--retrain-epochs", "0")
    assert quantize(images, tmp_path, *flags) == 0
    capsys.readouterr()
    more = ("--lambda-max-divrs", "0.15", "0.3", "--eval")
    assert quantize(images, tmp_path, *flags, *more) == 0
    assert capsys.readouterr().out.count("phase ternary") == 1
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_the_best_of_several_runs_is_one_that_meets_the_target(tmp_path):
    folders = []
    for name, top1, on_target in (("missed", 90.0, False), ("met", 80.0, True)):
        folder = tmp_path / name
        folder.mkdir()
        write_file({"name": name}, folder / "best.pt")
        epoch = {"epoch": 1, "val_top1": top1, "on_target": on_target}
        folders.append(History(folder, [epoch]))
    assert copy_best(folders, tmp_path / "best.pt").folder.name == "met"
    assert torch.load(tmp_path / "best.pt", weights_only=True) == {"name": "met"}


def test_a_finished_run_is_not_trained_again(images, trained, capsys):
    before = (run_folder(trained) / "last.pt").stat().st_mtime_ns
    assert scale(images, trained, "--epochs", "2") == 0
    assert "already trained" in capsys.readouterr().out
    assert (run_folder(trained) / "last.pt").stat().st_mtime_ns == before


def test_another_configuration_is_refused_and_a_new_start_keeps_the_old_run(
    images, tmp_path, capsys
):
    assert scale(images, tmp_path, "--epochs", "1") == 0
    kept = tensors(run_folder(tmp_path) / "last.pt")
    assert scale(images, tmp_path, "--epochs", "1", "--lr", "0.01") == 2
    assert "lr 0.1 -> 0.01" in capsys.readouterr().err
    assert scale(images, tmp_path, "--epochs", "1", "--lr", "0.01", "--resume-override") == 0
    assert "another configuration: lr 0.1 -> 0.01" in capsys.readouterr().out
    assert equal(tensors(run_folder(tmp_path) / "last.pt"), kept)
    name = run_folder(tmp_path).name
    assert scale(images, tmp_path, "--epochs", "1", "--lr", "0.01", "--no-resume") == 0
    assert equal(tensors(tmp_path / f"{name}.old1" / "last.pt"), kept)
    assert not equal(tensors(tmp_path / name / "last.pt"), kept)


def test_resume_from_a_named_checkpoint(images, trained, tmp_path, capsys):
    last = run_folder(trained) / "last.pt"
    assert scale(images, tmp_path, "--epochs", "3", "--resume", str(last)) == 0
    assert f"resuming {last} after epoch 2" in capsys.readouterr().out
    for unfit in ("nowhere.pt", last.parent / "best.pt", trained / "best_model.pt"):
        assert scale(images, tmp_path / "x", "--epochs", "3", "--resume", str(unfit)) == 5
    larger = ["--grid", "0.1", "1", "--resume", str(last)]
    assert scale(images, tmp_path / "x", "--epochs", "3", *larger) == 5
    assert not (tmp_path / "x").exists()


def unfinished_copy(trained, tmp_path):
    folder = tmp_path / run_folder(trained).name
    shutil.copytree(run_folder(trained), folder)
    (folder / "metrics.jsonl").unlink()
    return folder


def test_a_run_with_damaged_checkpoints_is_refused_and_kept(images, trained, tmp_path, capsys):
    folder = unfinished_copy(trained, tmp_path)
    for name in ("last.pt", "last.previous.pt"):
        (folder / name).write_bytes(b"rubbish")
    assert scale(images, tmp_path, "--epochs", "2") == 5
    captured = capsys.readouterr()
    assert "last.pt" in captured.err and captured.err.count("\n") == 1
    assert (folder / "last.pt").read_bytes() == b"rubbish"


def test_a_run_goes_on_from_the_checkpoint_alone(images, trained, tmp_path, capsys):
    folder = unfinished_copy(trained, tmp_path)
    (folder / "last.pt").write_bytes(b"rubbish")
    (folder / "config.json").write_text("{")
    (folder / "best.pt").write_bytes(b"rubbish")
    assert scale(images, tmp_path, "--epochs", "2") == 0
    output = capsys.readouterr().out
    assert "last.pt skipped" in output and "after epoch 1" in output
    for name in ("last.pt", "best.pt"):
        assert equal(tensors(folder / name), tensors(run_folder(trained) / name))
    assert json.loads((folder / "config.json").read_text())["epochs"] == 2
    assert (folder / "metrics.jsonl").read_text() == (
        run_folder(trained) / "metrics.jsonl"
    ).read_text()


def test_two_runs_do_not_share_a_folder(images, tmp_path, capsys):
    from model_compound_scaling.networks.registry import NetworkSpec
    from model_compound_scaling.runs.resume import RunRequest
    from model_compound_scaling.runs.run import Run

    folder = tmp_path / POINT
    request = RunRequest(folder, Configuration({}))
    run = Run(request, spec=NetworkSpec("lenet-5", 10), phases=())
    (run.folder / "config.json").unlink()
    assert scale(images, tmp_path, "--epochs", "1") == 3
    assert "used by another run" in capsys.readouterr().err


def test_a_diverged_run_says_so_and_keeps_the_last_good_epoch(images, tmp_path, capsys):
    assert scale(images, tmp_path, "--epochs", "2", "--lr", "1e30") == 6
    assert "--lr" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/last.pt"))


SCALING, QUANTIZATION, SCORING = run_compound_scaling, run_quantization, run_scoring
MISTAKES = [
    (SCALING, ["--model", "resnet21"], 2, "resnet20"),
    (SCALING, ["--dataset", "CIFAR1000"], 2, "CIFAR100"),
    (SCALING, ["--epoch", "3"], 2, "--epochs"),
    (SCALING, ["--epochs", "many"], 2, "--epochs"),
    (SCALING, ["--epochs", "0"], 2, "--epochs"),
    (SCALING, ["--dataset", "Shapes", "--grid", "1.4", "1.2", "1.6"], 2, "--grid"),
    (SCALING, ["--dataset", "Shapes", "--model", "resnet20", "--phi", "2"], 2, "--phi"),
    (SCALING, ["--phi", "nan"], 2, "--phi"),
    (SCALING, ["--seed", "18446744073709551615"], 2, "--seed"),
    (SCALING, ["--dataset", "Shapes", "--grid", "1", "1", "1", "1"], 2, "--grid"),
    (SCALING, ["--grid", "0", "1"], 2, "--grid"),
    (SCALING, ["--dataset", "Shapes", "--grid", "100", "100"], 2, "phi"),
    (SCALING, ["--dataset", "Shapes", "--model", "lenet-5", "--image-size", "32"], 2, "--image-size"),
    (SCALING, ["--dataset", "Shapes", "--model", "torch.nn:Linear"], 2, "torch.nn:Linear"),
    (SCALING, ["--dataset", "ImageFolder", "--image-size", "32", "--data-path", "nowhere"], 4, "nowhere"),
    (SCALING, ["--dataset", "ImageNet", "--data-path", "{empty}"], 4, "train"),
    (QUANTIZATION, [], 2, "--model-dict"),
    (QUANTIZATION, ["--model-dict", "nowhere.pt"], 5, "nowhere.pt"),
    (QUANTIZATION, ["--model-dict", "{net}", "--model", "resnet20"], 5, "cifar_micronet"),
    (QUANTIZATION, ["--model-dict", "{net}", "--dw-multps", "1.9", "1"], 5, "--dw-multps"),
    (QUANTIZATION, ["--model-dict", "{net}", "--dataset", "CIFAR100"], 5, "100"),
    (QUANTIZATION, ["--model-dict", "{net}", "--dataset", "Shapes"], 5, "2 classes"),
    (QUANTIZATION, ["--model-dict", "{net}", "--ternarize", "("], 2, "--ternarize"),
    (QUANTIZATION, ["--model-dict", "{net}", "--method", "ttq", "--do-prune"], 2, "--method ttq"),
    (QUANTIZATION, ["--model-dict", "{net}", "--target-sparsity", "101"], 2, "--target-sparsity"),
    (QUANTIZATION, ["--model-dict", "{net}", "--epochs", "0", "--retrain-epochs", "0"], 2, "--epochs"),
    (SCORING, ["--t-model", "{net}", "--json", "{net}"], 2, "itself"),
    (SCORING, ["--t-model", "{net}", "--json", "x", "--csv", "x"], 2, "--csv"),
    (SCORING, ["--t-model", "nowhere.pt"], 5, "nowhere.pt"),
    (SCORING, ["--t-model", "{truncated}"], 5, "truncated"),
    (SCORING, ["--t-model", "{net}", "--model", "lenet-5"], 5, "cifar_micronet"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "flags", "code", "names"), MISTAKES)
def test_mistakes_get_one_clear_line_and_write_nothing(
    trained, tmp_path, capsys, script, flags, code, names
):
    (tmp_path / "empty").mkdir()
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes((trained / "best_model.pt").read_bytes()[:2000])
    paths = {"net": trained / "best_model.pt", "empty": tmp_path / "empty", "truncated": truncated}
    output = tmp_path / "output"
    argv = [flag.format(**paths) for flag in flags] + ["--output", str(output)]
    status, _, err = call(script.main, capsys, *argv)
    assert status == code
    assert names in err and err.count("\n") == 1
    assert not output.exists()


def test_a_truncated_image_is_named(images, tmp_path, capsys):
    (tmp_path / "val").symlink_to(images / "val")
    for label in ("dark", "light"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for image in sorted((images / "train" / label).iterdir()):
            (tmp_path / "train" / label / image.name).symlink_to(image)
    broken = tmp_path / "train" / "dark" / "03.png"
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[:500])
    assert scale(tmp_path, tmp_path / "output", "--epochs", "1") == 4
    captured = capsys.readouterr()
    assert str(broken) in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "output").exists()


# every command line that scripts out there use
DOCUMENTED = [
    (SCALING, "--epochs 250 --batch-size 128 --grid 1.4 1.2 --phi 3.5 --dataset CIFAR100 --image-size 32"),
    (QUANTIZATION, "--model-dict c100_micronet_d14_w12_phi35.pt --batch-size 128 --epochs 20 --retrain-epochs 20 --ini-c-divrs 0.45 --lambda-max-divrs 0.15 --model cifar-micronet --dw-multps 1.4 1.2 --phi 3.5 --dataset CIFAR100"),
    (SCORING, "--t-model c100_micronet_ec2t_spars90.pt --model cifar_micronet --dataset CIFAR100 --eval --halfprecision"),
    (QUANTIZATION, "--batch-size 128 --val-batch-size 256 --ini-c-divrs 0.2 --lambda-max-divrs 0.125 --model efficientnet-b1 --model-dict efficientnet_b1.pt --dataset ImageNet --image-size 224 --data-path DIR --epochs 20 --retrain-epochs 15"),
    (QUANTIZATION, "--batch-size 128 --val-batch-size 256 --ini-c-divrs 0.25 --lambda-max-divrs 0.15 --model efficientnet-b1 --model-dict B1_ternary_exp_proj_head.pt --dataset ImageNet --image-size 224 --data-path DIR --epochs 10 --retrain-epochs 0 --do-prune --no-resume"),
    (SCORING, "--dataset ImageNet --data-path DIR --val-batch-size 256 --image-size 256 --model efficientnet-b1 --t-model efficientnet_b1_ec2t_ecp_spars61.pt --prune-threshold 0.01 --eval --halfprecision"),
    (SCORING, "--no-halfprecision --t-model best_ternary_imagenet_micronet.pt --image-size 200 --no-cuda"),
    (SCALING, "--no-cuda --workers 2 --val-batch-size 64 --data-path D --slurm-save S --seed 1 --lr 0.1 --momentum 0.9 --weight-decay 5e-4 --start-epoch 2 --resume none"),
    (QUANTIZATION, "--model-dict M --cuda --workers 2 --slurm-save S --seed 1 --lr 1e-4 --lr2 1e-5 --weight-decay 5e-6 --resume auto --no-eval --ec-pruning-se --ec-pruning-fc --ec-pruning-dw --centroids 0 --plot-ternarization True"),
    (SCORING, "--t-model T --no-cuda --workers 2 --slurm-save S --seed 1 --dw-multps 1.4 1.2 --phi 3.5 --mul-bits 8 --add-bits 16 --save --pt-sparse"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "line"), DOCUMENTED)
def test_documented_command_lines_parse(script, line):
    script.build_parser().parse_args(line.split())


@pytest.mark.parametrize("script", ["run_compound_scaling", "run_quantization", "run_scoring"])
def test_help_is_grouped_and_needs_no_data(script):
    command = [sys.executable, f"{script}.py", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "data:" in shown and "machine:" in shown and "(default: " in shown


def test_piped_output_has_no_progress_bars_and_survives_a_closed_pipe(images, tmp_path):
    command = [sys.executable, "-u", "run_compound_scaling.py", *TRAINING.split()]
    command += ["--data-path", str(images)]
    command += ["--epochs", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "evaluating" not in done.stderr and "\r" not in done.stdout + done.stderr
    assert "best network" in done.stdout


# what a command line needs to print its help or to say what is wrong with a flag
EARLY = """
import sys, time
start = time.perf_counter()
import run_compound_scaling, run_quantization, run_scoring
for script in (run_compound_scaling, run_quantization, run_scoring):
    script.build_parser().format_help()
mistakes = [
    (run_compound_scaling, ["--model", "resnet21"]),
    (run_compound_scaling, ["--dataset", "nope"]),
    (run_compound_scaling, ["--grid", "1", "1", "1"]),
    (run_compound_scaling, ["--grid", "auto", "--resume", "last.pt"]),
    (run_compound_scaling, ["--warmup-epochs", "200"]),
    (run_quantization, ["--model-dict", "net.pt", "--model", "resnet21"]),
    (run_quantization, ["--model-dict", "net.pt", "--levels", "5", "--centroids", "3"]),
    (run_quantization, ["--model-dict", "net.pt", "--resume", "last.pt"]),
    (run_scoring, ["--t-model", "net.pt", "--dataset", "nope"]),
    (run_scoring, ["--t-model", "net.pt", "--top", "3"]),
    (run_scoring, ["--t-model", "net.pt", "--onnx", "a", "--json", "a"]),
]
assert all(script.main(argv) == 2 for script, argv in mistakes)
print(time.perf_counter() - start, *sys.modules.keys() & {"torch", "torchvision", "numpy", "PIL"})
"""


def test_help_and_mistakes_do_not_wait_for_torch():
    done = subprocess.run(
        [sys.executable, "-c", EARLY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stdout.split()
    assert not loaded and float(seconds) < 5  # 0.2 on a quiet machine
    assert done.stderr.count("error: ") == done.stderr.count("\n") == 11
