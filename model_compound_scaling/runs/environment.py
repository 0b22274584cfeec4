"""What made a run's figures: command, code, versions, devices. One entry for each start."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.machine import processes

PACKAGES = ("torch", "torchvision", "numpy")
CODE = Path(__file__).parents[2]


def _git(*arguments: str) -> str | None:
    """What git says of the code; None where there is no git, or the code is no repository."""
    if not (CODE / ".git").exists():  # git would look in the folders above
        return None
    command = ["git", "-C", str(CODE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(device: torch.device) -> str:
    """A GPU's name, or the processor's kind and the threads that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict:
    """What repeats a figure: time (UTC), command line, commit of the code and whether files of it
    were changed since (None: not known), versions, and each process' device. All processes call
    it together."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    versions = {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "commit": commit and commit.strip(),
        "changed": None if changes is None else bool(changes.strip()),
        "versions": {**versions, "cuda": torch.version.cuda},
        "devices": processes.gather(_device(device)),
        "processes": processes.world_size(),
    }


def add_entry(path: Path, entry: dict) -> None:
    """Append to the list in a JSON file; one that cannot be read is begun anew."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        entries = []
    entries = [*entries, entry] if isinstance(entries, list) else [entry]
    write_text(json.dumps(entries, indent=1) + "\n", path)
