"""A run's folder: configuration, log, metrics, checkpoints, and continuing where it stopped.

`config.json`, `logfile.txt`, `metrics.jsonl` (one object per epoch), `last.pt`, `best.pt`.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from data.errors import CheckpointError, DiskError, FolderInUse, UserError
from model_compound_scaling.checkpoints import read_file, write_file
from model_compound_scaling.registry import NetworkSpec

# these change neither the result nor what the run means
INCIDENTAL = {"workers", "val_batch_size", "resume", "output", "cuda", "data_path"}


def write_text(path: Path, text: str) -> None:
    """Write so that a reader finds either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from None


class Log:
    """Lines to the console and, if there is a folder, to its `logfile.txt`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = folder and folder / "logfile.txt"

    def __call__(self, line: str) -> None:
        print(line)
        if self.path:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with self.path.open("a") as file:
                file.write(f"{stamp} {line}\n")


class Run:
    """One training run in a folder of its own.

    `resume` is "auto" (continue this folder's run if it has the same configuration), "none"
    (start over; an earlier run is kept under another name) or the path of a `last.pt`; `spec` and
    `phases` say what network and phases such a file must hold.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict,
        spec: NetworkSpec,
        phases: tuple[str, ...],
        resume: str = "auto",
    ) -> None:
        self.folder = folder
        source = None if resume in ("auto", "none") else Path(resume)
        if source:
            _require_resumable(source, spec, phases)
        self._lock = _locked(folder)
        if resume == "auto" and (folder / "last.pt").exists():
            _require_same(folder, config)
            source = folder / "last.pt"
        elif _holds_results(folder) and not _inside(source, folder):
            _set_aside(folder)
            self._lock = _locked(folder)
        self.log = Log(folder)
        self.state = read_file(source) if source else {}
        self.history: list[dict] = self.state.get("history", [])
        if source and not _inside(source, folder):
            write_file(read_file(source.parent / "best.pt"), folder / "best.pt")
        self._write_history()
        write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        if source:
            self.log(f"resuming {source} after epoch {self.epochs_done}")

    @property
    def epochs_done(self) -> int:
        """Where to go on: epochs are counted through all phases."""
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def best(self) -> dict:
        """Figures of the epoch of best validation accuracy, the earliest of equals; epochs that
        miss a target come after all others."""
        return max(
            self.history,
            key=lambda figures: (figures.get("on_target", True), figures["val_top1"]),
            default={},
        )

    def finish_epoch(self, figures: dict, content: dict) -> None:
        """Save `last.pt`, `best.pt` if this epoch is the best, and the figures."""
        self.history.append(figures)
        if self.best is figures:
            network = {key: value for key, value in content.items() if key != "resume"}
            write_file({**network, "figures": figures}, self.folder / "best.pt")
        write_file({**content, "history": self.history}, self.folder / "last.pt")
        self._write_history()
        self.log(_line(figures))

    def _write_history(self) -> None:
        lines = "".join(json.dumps(figures) + "\n" for figures in self.history)
        write_text(self.folder / "metrics.jsonl", lines)


def _line(figures: dict) -> str:
    """The plain figures of an epoch for the log."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in figures.items()}
    return "  ".join(f"{k} {v}" for k, v in shown.items() if not isinstance(v, list))


def _differences(old: dict, new: dict) -> list[str]:
    keys = sorted((old.keys() | new.keys()) - INCIDENTAL)
    return [f"{k} {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def _require_resumable(source: Path, spec: NetworkSpec, phases: tuple[str, ...]) -> None:
    if not source.is_file() or not (source.parent / "best.pt").is_file():
        raise CheckpointError(f"--resume {source}: no such file, or no best.pt beside it")
    content = read_file(source)
    if content.get("resume", {}).get("phase") not in phases:
        raise CheckpointError(f"--resume {source} is no last.pt of this stage")
    if content["network"] != spec.content():
        raise CheckpointError(
            f"--resume {source} holds another network than this run: {content['network']}"
        )


def _require_same(folder: Path, config: dict) -> None:
    try:
        old = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is missing or damaged ({error}): start over with "
            "--no-resume (the old run is kept beside it)"
        ) from None
    different = _differences(old, json.loads(json.dumps(config)))
    if different:
        raise UserError(
            f"{folder} holds a run of another configuration ({', '.join(different)}): choose "
            "another --output, or start over with --no-resume (the old run is kept beside it)"
        )


def _holds_results(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("last.pt", "best.pt"))


def _inside(path: Path | None, folder: Path) -> bool:
    return path is not None and path.resolve().parent == folder.resolve()


def _set_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)


def _locked(folder: Path) -> object:
    """Create the folder and hold its lock until this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise DiskError(f"--output {folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise FolderInUse(f"{folder} is used by another run ({file.read().strip()})") from None
    file.truncate(0)
    file.write(f"{os.uname().nodename}, process {os.getpid()}")
    file.flush()
    return file


def copy_best(runs: Iterable[Run], path: Path) -> Run | None:
    """Copy the best network of several runs to `path`; returns the run it is from."""
    finished = [run for run in runs if run.history]
    winner = max(finished, key=lambda run: run.best["val_top1"], default=None)
    if winner:
        write_file(read_file(winner.folder / "best.pt"), path)
    return winner
