"""What a machine lacks, and what a flag has wrong, said in one line."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import call
from torch import nn

import run_quantization
import run_scoring
from model_compound_scaling.command_line.entry import not_here
from model_compound_scaling.command_line.flag_values import regex

ROOT = Path(__file__).parents[2]


class Distances(nn.Module):
    """Distances to points of a plane: what no CPU computes in 16 bit."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.points = nn.Parameter(torch.randn(num_classes, 4))

    def forward(self, x):
        features = self.convs(x).mean((2, 3))
        with torch.autocast("cpu", enabled=False):  # which would compute it in 32 bit
            return -torch.cdist(features, self.points.to(features.dtype))


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_an_operator_that_is_missing_in_16_bit(images, tmp_path, capsys, amp):
    torch.save(Distances().state_dict(), tmp_path / "net.pt")
    flags = f"--dataset ImageFolder --data-path {images} --image-size 16 --batch-size 8 --no-cuda"
    flags += f" --model {__name__}:Distances --epochs 1 --retrain-epochs 0 --amp {amp}"
    flags += f" --output {tmp_path / 'out'}"
    assert run_quantization.main(["--model-dict", str(tmp_path / "net.pt"), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not implemented for" in error and "--amp" in error


@pytest.mark.slow
def test_without_a_compiler(images, tmp_path):
    flags = f"--dataset ImageFolder --data-path {images} --image-size 16 --batch-size 8 --no-cuda"
    flags += f" --grid 0.1 0.5 --phi 1 --epochs 1 --compile --output {tmp_path / 'out'}"
    bare = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    script = [sys.executable, ROOT / "run_compound_scaling.py", *flags.split()]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | bare)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "compiler" in done.stderr and "--compile" in done.stderr


def test_other_errors_are_not_explained_away():
    assert not_here(RuntimeError("size mismatch")) is None
    assert not_here(ValueError("Unsupported dtype Half")) is None
    assert "--amp" in str(not_here(NotImplementedError("Unsupported dtype BFloat16")))
    assert "--compile" in str(not_here(RuntimeError("Failed to find C compiler. Please ...")))


@pytest.mark.parametrize("pattern", ["(", "a{1,9999999999}", "(" * 9999])
def test_what_is_no_regular_expression(pattern):
    with pytest.raises(argparse.ArgumentTypeError, match="is no regular expression"):
        regex(pattern)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (run_scoring, "--t-modle x.pt", "unknown flag --t-modle; did you mean --t-model?"),
        (run_quantization, "--modeldict=x.pt", "did you mean --model-dict?"),
        (run_scoring, "--json x.json", "are required: --t-model"),
        (run_scoring, "--t-model x.pt --evall", "unknown flag --evall; did you mean --eval?"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_nearest(script, flags, words, capsys):
    code, out, err = call(script.main, capsys, *flags.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
