"""The benchmark of GPUs runs on a CPU, too, and counts what it says it counts."""

import json
import math
import warnings

import pytest
import torch

from tests.benchmarks import gpu


def assert_sound(rows):
    for row in rows:
        assert row["bare_images_per_second"] > 0 and row["loop_images_per_second"] > 0
        assert list(row["share"]) == sorted(row["share"]) and row["share"][0] > 0
        assert row["waits_per_step"] is None and row["peak_bytes"] is None  # unknown, not 0


def test_a_tiny_run_writes_its_tables(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert gpu.main(["--no-cuda", "--json", str(file)]) == 0
    shown, found = capsys.readouterr().out, json.loads(file.read_text())
    keys = [(r["stage"], r["precision"], r["channels_last"], r["compile"]) for r in found["modes"]]
    precisions, layouts = ("fp32", "bf16"), (False, True)
    assert keys == [(s, p, c, False) for p in precisions for c in layouts for s in (1, 2)]
    assert_sound(found["modes"])
    *steps, augmented, ddp = found["figures"]
    assert all(math.isfinite(v) for row in (*steps, ddp) for v in row["ratio"])
    assert [row["at_most"] for row in steps] == [1.05, 1.03, 1.25]
    assert augmented["images_per_second"] > 0 and "gloo" in ddp["what"]
    missing = ["tf32", "waits for the device", "peak memory", "DDP over nccl", "compiled steps"]
    assert [line.partition(":")[0] for line in found["not_measured"]] == missing
    assert all(f"* not measured: {line}" in shown for line in found["not_measured"])
    assert found["environment"]["versions"]["torch"] in torch.__version__
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(keys) + 2 + 5
    assert {line.count("|") for line in lines} == {10, 3}  # columns of the two tables
    assert not torch.distributed.is_initialized()


def test_what_no_time_is_left_for_is_named():
    work = gpu.make_work(torch.device("cpu"), None)
    measured = gpu.measure(work, compiled=True, limit=0)
    assert not measured.modes and len(measured.figures) == 5
    left_out = [line for line in measured.not_measured if "no time" in line]
    assert len(left_out) == 8 and "bf16, channels last, compiled: no time was left" in left_out


@pytest.mark.slow
def test_a_compiled_step():
    mode = gpu.Mode("bf16", channels_last=True, compile=True)
    rows = list(gpu.measure_mode(gpu.make_work(torch.device("cpu"), None), mode))
    assert [row["stage"] for row in rows] == [1, 2] and all(row["compile"] for row in rows)
    assert_sound(rows)


def test_every_wait_is_counted(monkeypatch):
    """As PyTorch reports them; a GPU is not needed to count."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        assert modes == ["warn"]
        wait = "called a synchronizing CUDA operation (Triggered internally)"
        for said in (wait, wait, wait, "other"):
            warnings.warn(said, stacklevel=1)

    found = gpu.waits(run)
    assert len(found) == 3 and modes == ["warn", "default"]
    assert {place.partition(":")[0] for place in found} == {"test_gpu_benchmark.py"}


def test_missed_targets_are_named():
    row = {"stage": 2, "precision": "bf16", "channels_last": True, "compile": False}
    good = {**row, "share": (0.8, 0.9, 1.0), "waits_per_step": 0.0}
    slow = good | {"share": (0.8, 0.89, 1.0)}
    waits = good | {"waits_per_step": 0.5, "waits_at": ["step.py:7"]}
    ratios = {"a": (1.0, 1.05, 1.1), "b": (1.0, 1.06, 1.1)}
    figures = [{"what": what, "ratio": ratio, "at_most": 1.05} for what, ratio in ratios.items()]
    figures += [{"what": "c", "ratio": (2.0, 3.0, 4.0)}, {"what": "d", "images_per_second": 1.0}]
    assert gpu.Measured([good], figures[:1]).missed() == []
    missed = gpu.Measured([good, slow, waits], figures).missed()
    kinds = [line.partition(":")[0] for line in missed]
    assert kinds == ["loop below 90% of bare", "waits", "above 1.05"]
    assert "stage 2, bf16, channels last" in missed[0] and missed[2].endswith(" b")
    assert missed[1].endswith("step.py:7")
