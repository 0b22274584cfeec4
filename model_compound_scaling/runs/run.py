"""A run's folder: configuration, log, metrics, checkpoints. `config.json`, `environment.json` (one
entry for each start), `logfile.txt`, `metrics.jsonl` (one object per epoch), `last.pt` with all
that a resumed run needs, `best.pt` with the best network. Of several processes only the first reads
and writes; the others are told."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from model_compound_scaling.checkpoints.atomic_save import write_file, write_generation, write_text
from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.checkpoints.recognition import mismatches
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.log import Log
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.runs.environment import add_entry
from model_compound_scaling.runs.history import REPORTED, History
from model_compound_scaling.runs.resume import RunRequest, open_folder, require_run


class Run(History):
    """One training run in a folder of its own, begun or continued as the request says. `state` is
    what it goes on from, empty for a new run. `spec` and `phases` say what network and phases a
    checkpoint must hold, `check` raises for other reasons why it cannot be continued. `units`: what
    the log says after figures of these names."""

    def __init__(
        self,
        request: RunRequest,
        *,
        spec: NetworkSpec,
        phases: tuple[str, ...],
        check: Callable[[dict], None] = lambda state: None,
        units: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.units = units
        self.config, self.interval = request.config.values, request.interval
        self.failures: dict[str, DiskError] = {}  # of the files whose last save failed
        self.log = Log(request.folder)

        def fits(state: dict, source: Path) -> None:
            require_run(state, source)
            if state["resume"].get("phase") not in phases:
                raise CheckpointError(f"{source} is no last.pt of this stage")
            network = state.get("network")
            known = network.get("activations", {}) if isinstance(network, dict) else {}
            held = replace(spec, activations=known)  # `check` says whether they are the right ones
            if network != held.content():
                raise CheckpointError(f"{source} holds another network than this run: {network}")
            if wrong := mismatches(state["state_dict"], held):
                raise CheckpointError(f"{source} does not fit the network: {wrong[0]}")
            check(state)

        def opened() -> tuple[dict, list[str]]:
            self._lock, state, lines = open_folder(request, fits)
            _write_history(request.folder / "metrics.jsonl", state.get("history", []))
            text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
            write_text(text, request.folder / "config.json")
            add_entry(request.folder / "environment.json", request.environment)
            return state, lines

        self.state, lines = processes.from_main(opened)
        super().__init__(request.folder, self.state.get("history", []))
        self.best_network: dict = self.state.get("best", {})
        for line in lines:
            self.log(line)

    def take_progress(self) -> dict | None:
        """How far the epoch was that the resumed checkpoint was saved in; asked for once."""
        progress = self.state.pop("progress", None)
        if progress and not processes.is_main():  # the sums are those of all processes
            progress = progress | {"loss": 0.0, "hits": 0, "samples": 0}
        return progress

    def save(self, content: Callable[[], dict], *, progress: dict | None = None) -> None:
        """Write `last.pt` of `content()`; if that fails, the old one stays and training goes on."""
        text = json.dumps(self.config, sort_keys=True)
        resumable = {
            "history": self.epochs,
            "best": self.best_network,
            "progress": progress,
            "config": self.config,
            "job": os.environ.get("SLURM_JOB_ID"),  # the same when SLURM starts it again
            "config_hash": hashlib.sha256(text.encode()).hexdigest(),
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
        single = {k: v for k, v in figures.items() if not isinstance(v, list)}
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in single.items()}
        self.log("  ".join(f"{k} {v}{self.units.get(k, '')}" for k, v in shown.items()))

    def report(self, figures: dict) -> None:
        """Save what the best network is worth on images that decided nothing."""
        text = json.dumps(figures) + "\n"
        self._attempt(REPORTED, lambda path: write_text(text, path))
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.log(f"validation images, which decided nothing: {shown}")

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


def _write_history(path: Path, epochs: list[dict]) -> None:
    write_text("".join(json.dumps(figures) + "\n" for figures in epochs), path)
