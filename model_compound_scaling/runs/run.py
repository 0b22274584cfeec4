"""A run's folder: configuration, log, metrics, checkpoints, and continuing where it stopped.

`config.json`, `logfile.txt`, `metrics.jsonl` (one object per epoch), `last.pt` with all that a
resumed run needs, `best.pt` with the best network. Of several processes only the first reads and
writes; the others are told.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from data.errors import UserError
from model_compound_scaling.checkpoints.atomic_save import (
    has_generation,
    read_file,
    read_generation,
    write_file,
    write_generation,
    write_text,
)
from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.checkpoints.recognition import mismatches
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.log import Log
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.runs.folder_lock import hold_folder
from model_compound_scaling.runs.history import History, differences


class Run(History):
    """One training run in a folder of its own.

    `resume` is "auto" (continue this folder's run if it has the same configuration), "none"
    (start over; an earlier run is kept under another name) or the path of a `last.pt`, from which
    to start; the same path later continues the run that it began. A job that SLURM starts again
    continues its own run, even with "none". `spec` and `phases` say what network and phases a
    checkpoint must hold, `check` raises for other reasons why it cannot be continued. With
    `override`, another configuration is no reason to stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict,
        spec: NetworkSpec,
        phases: tuple[str, ...],
        resume: str = "auto",
        override: bool = False,
        check: Callable[[dict], None] = lambda state: None,
    ) -> None:
        self.check = check
        self.config = json.loads(json.dumps(config))
        self.failures: dict[str, DiskError] = {}  # of the files whose last save failed
        self.log = Log(folder)

        def opened() -> tuple[dict, list[str]]:
            return self._open(folder, spec=spec, phases=phases, resume=resume, override=override)

        self.state, lines = processes.from_main(opened)
        super().__init__(folder, self.state.get("history", []))
        self.best_network: dict = self.state.get("best", {})
        self._progress = self.state.get("progress")
        for line in lines:
            self.log(line)

    def _open(
        self,
        folder: Path,
        *,
        spec: NetworkSpec,
        phases: tuple[str, ...],
        resume: str,
        override: bool,
    ) -> tuple[dict, list[str]]:
        """The state to go on from, empty for none, and what is to be said about it."""
        own, named = folder / "last.pt", None
        source = None if resume in ("auto", "none") else Path(resume)
        if source and not has_generation(own):
            named = self._named(source, spec, phases)  # before the folder is touched
        self._lock = hold_folder(folder)
        begun = self._begun(own, resume)
        if source and not begun and not named:
            named = self._named(source, spec, phases)
        found = begun or named
        if begun:
            _require_run(*begun[:2])
        elif _holds_results(folder) and not (found and _inside(found[1], folder)):
            _set_aside(folder)
            self._lock = hold_folder(folder)
        state, source, lines = found or ({}, None, [])
        if self._lock.taken_from:
            lines.append(f"taking over from a run that died: {self._lock.taken_from}")
        if source:
            different = differences(state["config"], self.config)
            if resume == "auto" and different and not override:
                raise _other_configuration(folder, different)
            if different:
                lines.append(f"going on with another configuration: {', '.join(different)}")
            self._require_fit(state, source, spec, phases)
            lines.append(f"resuming {source} {_position(state)}")
            _restore_best(state, folder)
        _write_history(folder / "metrics.jsonl", state.get("history", []))
        text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        write_text(text, folder / "config.json")
        return state, lines

    def _begun(self, own: Path, resume: str) -> tuple[dict, Path, list[str]] | None:
        """The folder's checkpoint, if it is of a run that this command began."""
        if not has_generation(own):
            return None
        if resume == "auto":
            return read_generation(own)
        try:
            found = read_generation(own)
        except CheckpointError:
            return None  # it is set aside, as any other run
        old = found[0].get("config")
        same = isinstance(old, dict) and not differences(old, self.config)
        same = same and old.get("resume") == resume
        again = resume != "none" or (_restarted() and found[0].get("job") == _job())
        return found if same and again else None

    def _named(
        self, path: Path, spec: NetworkSpec, phases: tuple[str, ...]
    ) -> tuple[dict, Path, list[str]]:
        """The checkpoint that --resume names, if it fits this run."""
        if not has_generation(path):
            raise CheckpointError(f"--resume {path}: no such file")
        found = read_generation(path)
        self._require_fit(*found[:2], spec, phases)
        return found

    def _require_fit(
        self, state: dict, source: Path, spec: NetworkSpec, phases: tuple[str, ...]
    ) -> None:
        """CheckpointError unless a checkpoint is of this network and of one of these phases."""
        _require_run(state, source)
        if state["resume"].get("phase") not in phases:
            raise CheckpointError(f"{source} is no last.pt of this stage")
        if (network := state.get("network")) != spec.content():
            raise CheckpointError(f"{source} holds another network than this run: {network}")
        if wrong := mismatches(state["state_dict"], spec):
            raise CheckpointError(f"{source} does not fit the network: {wrong[0]}")
        self.check(state)

    def take_progress(self) -> dict | None:
        """How far the epoch was that the resumed checkpoint was saved in; asked for once."""
        progress, self._progress = self._progress, None
        if progress and not processes.is_main():  # the sums are those of all processes
            progress = progress | {"loss": 0.0, "hits": 0, "samples": 0}
        return progress

    def save(self, content: Callable[[], dict], *, progress: dict | None = None) -> None:
        """Write `last.pt` of `content()`; if that fails, the old one stays and training goes on."""
        resumable = {
            "history": self.epochs,
            "best": self.best_network,
            "progress": progress,
            "config": self.config,
            "job": _job(),
            "config_hash": hashlib.sha256(
                json.dumps(self.config, sort_keys=True).encode()
            ).hexdigest(),
            "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        }
        self._attempt("last.pt", lambda path: write_generation({**content(), **resumable}, path))

    def finish_epoch(self, figures: dict, content: Callable[[], dict]) -> None:
        """Save `last.pt`, `best.pt` if this epoch is the best, and the figures."""
        self.epochs.append(figures)
        if self.best is figures:
            network = {key: value for key, value in content().items() if key != "resume"}
            self.best_network = {**network, "figures": figures}
            self._attempt("best.pt", lambda path: write_file(self.best_network, path))
        self.save(content)
        self._attempt("metrics.jsonl", lambda path: _write_history(path, self.epochs))
        self.log(_line(figures))

    def _attempt(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file of the folder; if that fails, say so, remember it, and go on."""
        if not processes.is_main():
            return
        try:
            write(self.folder / name)
        except DiskError as error:
            self.failures[name] = error
            self.log(f"warning: {error}; what was there before is untouched, training goes on")
        else:
            self.failures.pop(name, None)

    def require_saved(self) -> None:
        """DiskError, in all processes, if the last save of some file failed."""

        def check() -> None:
            for error in self.failures.values():
                raise error

        processes.from_main(check)

    def close(self) -> History:
        """Let others have the folder; what became of the run. DiskError if the last save failed."""
        if processes.is_main():
            self._lock.release()
        self.require_saved()
        return History(self.folder, self.epochs)

    def last_good(self) -> str:
        """Where the state before now is."""
        file = self.folder / "last.pt"
        return f"the state to go on from is in {file}" if file.exists() else "nothing was saved yet"


def _job() -> str | None:
    """The SLURM job that this process belongs to; the same when it is started again."""
    return os.environ.get("SLURM_JOB_ID")


def _restarted() -> bool:
    """Whether SLURM has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _position(state: dict) -> str:
    """Where a checkpoint was saved, in words."""
    epochs, progress = state.get("history", []), state.get("progress")
    if progress:
        return f"in epoch {progress['figures']['epoch']}, after step {progress['batch']}"
    return f"after epoch {epochs[-1]['epoch'] if epochs else 0}"


def _line(figures: dict) -> str:
    """The plain figures of an epoch for the log."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in figures.items()}
    return "  ".join(f"{k} {v}" for k, v in shown.items() if not isinstance(v, list))


def _write_history(path: Path, epochs: list[dict]) -> None:
    write_text("".join(json.dumps(figures) + "\n" for figures in epochs), path)


def _other_configuration(folder: Path, different: list[str]) -> UserError:
    return UserError(
        f"{folder} holds a run of another configuration ({', '.join(different)}): choose another "
        "--output, go on all the same with --resume-override, or start over with --no-resume (the "
        "old run is kept beside it)"
    )


def _require_run(state: dict, source: Path) -> None:
    """CheckpointError unless a checkpoint has what every `last.pt` has."""
    kinds = {"resume": dict, "history": list, "config": dict, "state_dict": dict, "best": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    progress = state.get("progress")
    figures = [] if wrong else [*state["history"]]
    figures += [state["best"].get("figures")] if not wrong and state["best"] else []
    figures += [progress.get("figures") if isinstance(progress, dict) else 0] if progress else []
    if not wrong and not all(isinstance(f, dict) and "epoch" in f for f in figures):
        wrong = ["figures of its epochs"]
    if not wrong and not all(isinstance(t, Tensor) for t in state["state_dict"].values()):
        wrong = ["tensors"]
    if wrong:
        raise CheckpointError(
            f"{source} is no last.pt, from which a run can go on: it has no {wrong[0]}; start over "
            "with --no-resume"
        )


def _holds_results(folder: Path) -> bool:
    return has_generation(folder / "last.pt") or (folder / "best.pt").exists()


def _inside(path: Path | None, folder: Path) -> bool:
    return path is not None and path.resolve().parent == folder.resolve()


def _set_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise DiskError(f"cannot rename {folder} to {aside.name}: {error.strerror}") from None


def _restore_best(state: dict, folder: Path) -> None:
    """Bring best.pt to what the checkpoint knows: it may be of a later epoch, or damaged."""
    best, path = state.get("best"), folder / "best.pt"
    try:
        known = read_file(path)["figures"] if path.exists() else None
    except CheckpointError:
        known = None
    if best and known != best["figures"]:
        write_file(best, path)
