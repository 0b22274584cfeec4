"""Files that version 0.1 wrote, before the code moved: all stages read them, and runs go on."""

import json
import tarfile
from pathlib import Path

import pytest

import run_compound_scaling
import run_quantization
import run_scoring

ARCHIVE = Path(__file__).parents[1] / "files_written_before" / "version_0.1.tar.xz"
SCALING = "--dataset Shapes --grid 0.14 0.1 --phi 1 --epochs 2"
QUANTIZATION = (
    "--model-dict best_model.pt --ini-c-divrs 0.3 --lambda-max-divrs 0.15 "
    "--epochs 1 --retrain-epochs 1"
)
BOTH = "--batch-size 500 --augment flip-crop --no-cuda --checkpoint-every 5steps --output"


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("stage", "main", "flags"),
    [
        ("scaling", run_compound_scaling.main, SCALING),
        ("quantization", run_quantization.main, QUANTIZATION),
    ],
)
def test_a_run_that_was_stopped_in_its_second_epoch_goes_on(before, capsys, stage, main, flags):
    assert main([*flags.split(), *BOTH.split(), stage]) == 0
    out = capsys.readouterr().out
    assert "resuming" in out and "in epoch 2, after step" in out
    ended = (json.loads(line) for line in next(before.glob(f"{stage}/*/metrics.jsonl")).open())
    known = (json.loads(line) for line in (before / "finished" / f"{stage}.jsonl").open())
    for now, then in zip(ended, known, strict=True):
        assert now.keys() >= then.keys()
        assert now["val_loss"] == pytest.approx(then["val_loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["Ternary_best_acc.pt", "net.ec2t", "best_model.pt"])
def test_checkpoints_and_packed_files_score_as_they_did(before, name):
    assert run_scoring.main(["--t-model", name, "--json", "now.json", "--no-cuda"]) == 0
    now, then = (json.loads(Path(f).read_text()) for f in ("now.json", "net.json"))
    assert now.keys() >= then.keys()
    if name == "best_model.pt":  # full precision: another score, the same network
        assert now["parameters"] == then["parameters"] and now["zeros"] == 0
    else:
        for key in then.keys() - {"checkpoint", "layers"}:
            assert now[key] == then[key], key
        for layer, known in zip(now["layers"], then["layers"], strict=True):
            assert {key: layer[key] for key in known} == known  # keys may have come since
