"""What is in the folders of stages 1 and 2: a trial for each run, finished or not."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.errors import UserError
from model_compound_scaling.checkpoints import load_network, read_checkpoint
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.registry import table_row
from model_compound_scaling.runs.history import History
from model_scoring.counting.scoring import score

SET_ASIDE = re.compile(r"\.old\d+$")  # runs that --no-resume replaced
NUMBERS = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1")
FIGURES = {"phase": str, "on_target": bool, **dict.fromkeys(NUMBERS, float)}
QUANTIZED = dict.fromkeys(("zeros", "scoring_params"), float)


@dataclass(frozen=True, eq=False)
class Trial:
    """One run: what it was asked for, what became of its epochs, what made it."""

    history: History
    config: dict
    starts: list[dict]  # of environment.json; none for runs of older versions
    parameters: float | None  # published scoring parameters of its best network

    @property
    def stage(self) -> int:
        return 2 if "model_dict" in self.config else 1

    @property
    def planned(self) -> float:
        """Epochs of all phases."""
        return self.config["epochs"] + self.config.get("retrain_epochs", 0)


def _bounded(number: str) -> float:
    return min(max(float(number), -1e15), 1e15)  # what a picture can still show


_parse = partial(json.loads, parse_int=_bounded, parse_float=_bounded)


def _require(values: object, kinds: dict[str, type]) -> dict:
    """Raises ValueError unless the values are of these kinds; a bool may be missing."""
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name, kind is bool), kind) for name, kind in kinds.items()
    ):
        raise ValueError("not as stages 1 and 2 write it")
    return values


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file comes as one line with the fix."""
    try:
        yield
    except (OSError, ValueError, TypeError, RecursionError) as error:  # UserErrors, too
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]
        raise UserError(
            f"--runs: {path} cannot be used ({reason}): restore it, or move {path.parent} elsewhere"
        ) from None


def _trial(folder: Path, count: Callable[[Path], float]) -> Trial:
    with _named(path := folder / "config.json"):
        config = _require(_parse(path.read_text()), {"epochs": float, "seed": float})
        quantized = "model_dict" in config
        _require(config, {"retrain_epochs": float} if quantized else {})
    with _named(path := folder / "metrics.jsonl"):
        kinds, lines = FIGURES | (QUANTIZED if quantized else {}), path.read_text().splitlines()
        history = History(folder, [_require(_parse(line), kinds) for line in lines])
    with _named(path := folder / "environment.json"):
        entries = json.loads(path.read_text()) if path.exists() else []
        starts = [_require(entry, {"time": str, "command": list}) for entry in entries]
    with _named(path := folder / "best.pt"):
        counted = history.epochs and not quantized
        parameters = count(path) if counted else history.best.get("scoring_params")
    return Trial(history, config, starts, parameters)


def read_trials(folders: Iterable[Path], count: Callable[[Path], float]) -> list[Trial]:
    """The runs in --output folders of both stages, by name. `count`: a checkpoint's published
    scoring parameters, for stage 1, which records none. UserError for a folder without runs, and
    for a run with damaged files."""
    trials = []
    for folder in {path.resolve(): path for path in folders}.values():
        files = (f"*/{name}" for name in ("config.json", "metrics.jsonl"))
        runs = sorted({path.parent for pattern in files for path in folder.glob(pattern)})
        if not runs:
            raise UserError(f"--runs {folder} holds no run: name an --output of stage 1 or 2")
        trials += [_trial(run, count) for run in runs if not SET_ASIDE.search(run.name)]
    return trials


def published_parameters(path: Path, *, trusted: str | None = None) -> float:
    """Of a checkpoint of ours, as stage 2 counts them; `trusted`: the one `module:function` whose
    code the file may have run to build its network."""
    checkpoint = read_checkpoint(path)
    same = checkpoint.network and checkpoint.network.model == trusted
    spec = network_spec(checkpoint, model=trusted if same else None)
    network, row = load_network(checkpoint, spec).eval(), table_row(spec.model)
    size, rules = checkpoint.data.get("image_size", row.image_size), ("published",)
    counted = score(network, (row.channels, size, size), family=row.family, rules=rules)
    return counted.totals["published"].params
