"""Stage 2 with the recipe of stage 1, a rising strength, and a teacher."""

import json
import os
import shutil
import signal
from dataclasses import fields
from functools import partial

import pytest
import torch
from helpers import call, save_tree, scale

import run_quantization
from model_compound_scaling.training.recipe import Recipe
from model_compound_scaling.training.step import TrainStep
from model_quantization.ec2t.ternarizer import Ternarizer

FLAGS = "--ini-c-divrs 0.3 --lambda-max-divrs 0.2 --lr 1e-3 --lr2 1e-4 --no-cuda --batch-size 8"
EVERYTHING = (
    "--amp bf16 --channels-last --schedule cosine --warmup-epochs 1 --label-smoothing 0.1 "
    "--mixup 0.2 --cutmix 0.5 --gamma-schedule linear --teacher self --distill 0.5"
)


def epochs(moving, frozen, *more):
    return ["--epochs", moving, "--retrain-epochs", frozen, *more]


def quantize(capsys, images, trained, output, *flags):
    source = ("--model-dict", trained / "best_model.pt", "--data-path", images)
    return call(run_quantization.main, capsys, *source, *FLAGS.split(), "--output", output, *flags)


def metrics(output):
    return [json.loads(line) for line in next(output.glob("*/metrics.jsonl")).open()]


def last(output):
    return torch.load(next(output.glob("*/last.pt")), weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_each_phase_has_its_own_schedule(images, trained, tmp_path, capsys):
    flags = epochs(4, 3, "--schedule", "cosine", "--warmup-epochs", 1)
    assert quantize(capsys, images, trained, tmp_path, *flags)[0] == 0
    factors = [figures["lr"] / 1e-3 for figures in metrics(tmp_path)]
    assert factors == pytest.approx([0.5, 1, 0.75, 0.25, 0.5, 1, 0.5])
    groups = last(tmp_path)["resume"]["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([5e-4, 5e-5, 5e-4])


def test_the_strength_rises_in_the_first_half_and_weaker_epochs_are_no_result(
    images, trained, tmp_path, capsys, monkeypatch
):
    strengths, finish = [], Ternarizer.finish_step

    def record(self):
        strengths.append(self.gamma)
        finish(self)

    monkeypatch.setattr(Ternarizer, "finish_step", record)
    flags = epochs(4, 1, "--gamma-schedule", "linear")
    assert quantize(capsys, images, trained, tmp_path, *flags)[0] == 0
    steps = 6  # 48 images in batches of 8
    rise = [0.2 * min(1, i / (2 * steps)) for i in range(4 * steps + 1)]
    assert strengths[: len(rise)] == pytest.approx(rise)
    assert strengths[2 * steps] == 0.2 == strengths[-1]
    figures = metrics(tmp_path)
    assert [f.get("on_target") for f in figures] == [False, True, True, True, None]
    best = torch.load(tmp_path / "Ternary_best_acc.pt", weights_only=True)["figures"]
    assert best["epoch"] > 1


@pytest.mark.faults
@pytest.mark.parametrize("stops", [(2, 7), (5, 13)])
@pytest.mark.parametrize("goal", [(), ("--target-sparsity", 60)])  # found within epochs, too
def test_all_of_it_together_resumes_to_the_bit(
    images, trained, tmp_path, capsys, fork, stops, goal
):
    flags = epochs(2, 1, "--checkpoint-every", "1steps", *EVERYTHING.split(), *goal)
    assert quantize(capsys, images, trained, tmp_path / "whole", *flags)[0] == 0
    step = TrainStep.__call__

    def killed(stop):
        def until(self, *args, number, **kwargs):
            if number == stop:
                os.kill(os.getpid(), signal.SIGTERM if stop % 2 else signal.SIGKILL)
            return step(self, *args, number=number, **kwargs)

        TrainStep.__call__ = until  # in the child only
        os._exit(quantize(capsys, images, trained, tmp_path / "parts", *flags)[0])

    for stop in stops:
        assert os.waitpid(fork(partial(killed, stop)), 0)[1] != 0
    assert quantize(capsys, images, trained, tmp_path / "parts", *flags)[0] == 0
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    for key in ("state_dict", "resume", "history"):
        assert same(whole[key], parts[key]), key


def test_another_teacher_is_another_configuration_another_place_is_not(
    images, trained, tmp_path, capsys
):
    teacher = shutil.copy(trained / "best_model.pt", tmp_path / "teacher.pt")
    flags = epochs(1, 0, "--distill", 0.5, "--distill-direction", "reverse")
    output = tmp_path / "out"
    assert quantize(capsys, images, trained, output, *flags, "--teacher", teacher)[0] == 0
    moved = shutil.move(teacher, tmp_path / "moved.pt")
    code, out, _ = quantize(capsys, images, trained, output, *flags, "--teacher", moved)
    assert code == 0 and "phase" not in out
    code, _, err = quantize(capsys, images, trained, output, *flags, "--teacher", "self")
    assert code == 2 and "another configuration (teacher sha256" in err


def test_a_run_from_before_these_flags_goes_on(images, trained, tmp_path, capsys):
    flags, more = epochs(1, 1), epochs(1, 2)
    assert quantize(capsys, images, trained, tmp_path, *flags)[0] == 0
    path = next(tmp_path.glob("*/last.pt"))
    state = torch.load(path, weights_only=True)
    new = {field.name for field in fields(Recipe)} | {"teacher", "distill", "temperature", "ema"}
    for name in new | {"distill_direction", "gamma_schedule"}:
        del state["config"][name]
    del state["resume"]["step"]
    torch.save(state, path)
    code, out, err = quantize(capsys, images, trained, tmp_path, *more)
    assert code == 2 and "(retrain_epochs 1 -> 2)" in err
    code, out, err = quantize(capsys, images, trained, tmp_path, *more, "--resume-override")
    assert (code, err) == (0, "") and "after epoch 2" in out


def test_what_a_teacher_must_be(images, trained, tmp_path, capsys):
    base = epochs(1, 0)
    for flags, code, words in (
        ("--distill 0.5", 2, "--distill takes effect with --teacher"),
        ("--temperature 2", 2, "--temperature takes effect with --teacher"),
        ("--teacher self", 2, "--teacher needs --distill"),
        ("--teacher self --distill 1.5", 2, "argument --distill: 1.5 is not between 0 and 1"),
        ("--teacher self --distill -0.1", 2, "argument --distill"),
        ("--teacher self --distill 0.5 --temperature 0", 2, "argument --temperature"),
        ("--teacher nowhere.pt --distill 0.5", 5, "--teacher nowhere.pt: no such file"),
        ("--ema 0.99", 2, "an average of ternary networks is not ternary"),
    ):
        found, _, err = quantize(capsys, images, trained, tmp_path, *base, *flags.split())
        assert (found, err.count("\n")) == (code, 1) and words in err, (flags, err)
    three = save_tree(tmp_path / "three", ("a", "b", "c"))
    assert scale(three, tmp_path / "other") == 0
    renamed = save_tree(tmp_path / "renamed", ("bus", "car"))
    assert scale(renamed, tmp_path / "names") == 0
    capsys.readouterr()
    output = tmp_path / "out"
    for folder in ("other", "names"):
        flags = [*base, "--distill", "0.5", "--teacher", tmp_path / folder / "best_model.pt"]
        code, _, err = quantize(capsys, images, trained, output, *flags)
        assert (code, err.count("\n")) == (5, 1) and "best_model.pt: " in err, err
    assert not output.exists()


def test_a_preset_is_other_defaults():
    parser = run_quantization.build_parser()
    given = ("--model-dict", "net.pt")
    values = {name: vars(parser.parse_args([*given, *flags])) for name, flags in {
        "thesis": (), "strong": ("--recipe", "strong"),
        "before": ("--lr", "1e-4", "--recipe", "strong"),  # as thesis has it, and given
        "behind": ("--recipe", "strong", "--schedule", "step"),
        "again": ("--recipe", "thesis"),
    }.items()}  # fmt: skip
    chosen = {name: (v["lr"], v["lr2"], v["schedule"]) for name, v in values.items()}
    assert chosen == {
        "thesis": (1e-4, 1e-5, "constant"), "strong": (1e-3, 1e-4, "cosine"),
        "before": (1e-4, 1e-4, "cosine"), "behind": (1e-3, 1e-4, "step"),
        "again": (1e-4, 1e-5, "constant"),
    }  # fmt: skip
    for name, other in values.items():  # nothing else is another one
        differing = {k for k in other if other[k] != values["thesis"][k]}
        assert differing <= {"recipe", "lr", "lr2", "schedule"}, name
    assert parser.configuration({}).defaults["lr"] == 1e-4
