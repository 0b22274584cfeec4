"""What became of a run's epochs, and whether it is the run that a configuration asks for."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import UserError
from model_compound_scaling.checkpoints.atomic_save import read_file, write_file
from model_compound_scaling.machine import processes

REPORTED = "validation.json"


class TargetMissed(UserError):
    """No network has the accuracy that was asked for; what there is, is written."""

    exit_code = 8
    shared = True


def rank(figures: dict) -> tuple[bool, float]:
    """Validation accuracy makes an epoch the best; those that miss a target come last."""
    return figures.get("on_target", True), figures["val_top1"]


@dataclass(frozen=True)
class Configuration:
    """What a run was asked for: its flags as config.json has them (what JSON keeps as it is, so no
    tuples), the names of those that change neither the result nor what the run means, and what a
    flag is unless given: runs from before there was such a flag did not record it."""

    values: dict
    incidental: frozenset[str] = frozenset()
    defaults: dict = field(default_factory=dict)

    def differences(self, old: dict) -> list[str]:
        """`name old -> new` of each value that an earlier run's differs in and that matters."""
        new, usual = self.values, self.defaults.get
        keys = sorted((old.keys() | new.keys()) - self.incidental)
        pairs = [(k, old.get(k, usual(k)), new.get(k, usual(k))) for k in keys]
        return [f"{k} {before} -> {now}" for k, before, now in pairs if before != now]


class History:
    """The epochs of a run, in its folder or read from there."""

    def __init__(self, folder: Path, epochs: list[dict]) -> None:
        self.folder, self.epochs = folder, epochs

    @property
    def epochs_done(self) -> int:
        """Where to go on: epochs are counted through all phases."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def best(self) -> dict:
        """Figures of the epoch of highest `rank`, the earliest of equals."""
        return max(self.epochs, key=rank, default={})

    @property
    def reported(self) -> dict | None:
        """Figures of the best epoch on images that decided nothing, None if there are none."""
        try:
            figures = json.loads((self.folder / REPORTED).read_text())
            fits = figures["epoch"] == self.best["epoch"] and isinstance(figures["top1"], float)
            return figures if fits else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @property
    def mean_of_best(self) -> float:
        """Mean validation accuracy of the best five epochs, in percent; the best may be luck."""
        best = sorted((figures["val_top1"] for figures in self.epochs), reverse=True)[:5]
        return sum(best) / len(best)


def finished(folder: Path, *, config: Configuration, epochs: int) -> History | None:
    """The history of a run with this configuration that has all its epochs, else None. Without the
    folder's lock: the run may be another machine's. One whose best network is not the one of its
    figures, after a save that failed or damage, is to be resumed."""
    try:
        old = json.loads((folder / "config.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        history = History(folder, [json.loads(line) for line in lines])
        if config.differences(old) or history.epochs_done < epochs:
            return None
        return history if read_file(folder / "best.pt").get("figures") == history.best else None
    except (OSError, ValueError):  # CheckpointError, too
        return None


def copy_best(histories: Iterable[History], path: Path) -> History | None:
    """Copy the best network of several runs to `path`; returns the run it is from."""
    trained = [history for history in histories if history.epochs]
    winner = max(trained, key=lambda history: rank(history.best), default=None)
    if winner and processes.is_main():
        # read and written, not copied: a damaged best.pt must not become the result
        write_file(read_file(winner.folder / "best.pt"), path)
    return winner
