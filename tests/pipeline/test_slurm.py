"""The batch scripts, with stand-ins for SLURM's commands."""

import os
import subprocess
from pathlib import Path

import pytest

import run_compound_scaling
import run_quantization
import run_scoring

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
STAGES = {
    "run_compound_scaling.py": run_compound_scaling,
    "run_quantization.py": run_quantization,
    "run_scoring.py": run_scoring,
}
FLAGS = {
    "quantization": ["--model-dict", "net.pt"],
    "scoring": ["--t-model", "net.pt"],
    "find_network": ["--accuracy", "80", "--dataset", "CIFAR100"],
}


def submit(script: Path, folder: Path, code: int) -> tuple[int, list[str], str]:
    """Run a batch script as SLURM would: its exit code, srun's arguments, scontrol's."""
    for name, body in (("srun", f"exit {code}"), ("scontrol", "")):
        command = folder / name
        command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/{name}.log\n{body}\n')
        command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "77",
    }
    if "#SBATCH --array" in script.read_text():
        array = {"ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3", "ARRAY_TASK_COUNT": "6"}
        environment |= {f"SLURM_{key}": value for key, value in array.items()}
    command = ["bash", str(script), *FLAGS.get(script.stem, [])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    requeued = folder / "scontrol.log"
    shown = requeued.read_text() if requeued.exists() else ""
    return done.returncode, (folder / "srun.log").read_text().splitlines(), shown


@pytest.mark.parametrize(
    ("script", "code"),
    # find_network goes on with what a stage has left, and the stand-in leaves nothing
    [(s, c) for s in SCRIPTS for c in (0, 5, 75) if (s.stem, c) != ("find_network", 0)],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_stage_that_was_stopped_is_requeued(script, tmp_path, code):
    returned, command, requeued = submit(script, tmp_path, code)
    assert returned == code
    job = "70_3" if "#SBATCH --array" in script.read_text() else "77"
    assert requeued == (f"requeue\n{job}\n" if code == 75 else "")
    name = next(word for word in command if word.endswith(".py"))
    flags = command[command.index(name) + 1 :]
    STAGES[Path(name).name].build_parser().parse_args(flags)  # every flag is one that the stage has


def test_the_array_shares_the_grid(tmp_path):
    script = ROOT / "scripts" / "slurm" / "scaling_grid.sbatch"
    _, command, _ = submit(script, tmp_path, 0)
    assert command[command.index("--shard") + 1] == "3/6"
