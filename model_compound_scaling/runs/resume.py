"""Which checkpoint a run starts from, and what becomes of an earlier run in its folder."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from data.errors import UserError
from model_compound_scaling.checkpoints import atomic_save
from model_compound_scaling.checkpoints.atomic_save import has_generation, read_generation
from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.runs.folder_lock import FolderLock, hold_folder
from model_compound_scaling.runs.history import Configuration
from model_compound_scaling.runs.save_interval import Interval

Fits = Callable[[dict, Path], None]  # raises if a checkpoint's content cannot be gone on from


@dataclass(frozen=True)
class RunRequest:
    """Which run: its folder and configuration, and what becomes of an earlier run there. `resume`
    is "auto" (continue this folder's run if it has the same configuration), "none" (start over; an
    earlier run is kept under another name) or the path of a `last.pt`, from which to start; the
    same path later continues the run that it began. A job that SLURM starts again continues its own
    run, even with "none". With `override`, another configuration may go on. `environment`: what
    environment.json says of this start."""

    folder: Path
    config: Configuration
    resume: str = "auto"
    override: bool = False
    interval: Interval = field(default_factory=Interval)  # of saves within an epoch
    environment: dict = field(default_factory=dict)


def open_folder(request: RunRequest, fits: Fits) -> tuple[FolderLock, dict, list[str]]:
    """Hold the run's folder; the state to go on from, empty for none, and what is to be said.
    Raises FolderInUse, CheckpointError, DiskError, or UserError for another configuration."""
    folder = request.folder
    # before the folder is touched: a PATH that cannot be used leaves no trace. Where there is a
    # last.pt, PATH may have begun it and need not exist any more
    start = None if has_generation(folder / "last.pt") else _named_checkpoint(request, fits)
    lock = hold_folder(folder)
    # only who holds the folder reads its last.pt: another run would be writing it
    own = _own_checkpoint(request)
    start = own or start or _named_checkpoint(request, fits)
    # PATH may be in this folder: then the results in it are those of the run that goes on
    goes_on = own or (start and start.source.resolve().parent == folder.resolve())
    if not goes_on and (has_generation(folder / "last.pt") or (folder / "best.pt").exists()):
        _set_aside(folder)
        lock = hold_folder(folder)  # the old one went with the old folder
    lines = start.lines if start else []
    if lock.taken_from:
        lines.append(f"taking over from a run that died: {lock.taken_from}")
    if start is None:
        return lock, {}, lines
    # what the user has to decide comes before what the file has to fit
    if different := request.config.differences(start.state["config"]):
        if request.resume == "auto" and not request.override:
            raise UserError(
                f"{folder} holds a run of another configuration ({', '.join(different)}): choose "
                "another --output, go on all the same with --resume-override, or start over with "
                "--no-resume (the old run is kept beside it)"
            )
        lines.append(f"going on with another configuration: {', '.join(different)}")
    fits(start.state, start.source)
    lines.append(f"resuming {start.source} {_position(start.state)}")
    _restore_best(start.state, folder)
    return lock, start.state, lines


def _own_checkpoint(request: RunRequest) -> atomic_save.Generation | None:
    """The folder's checkpoint, if it is of a run that this command began; it is a run's then."""
    path = request.folder / "last.pt"
    if not has_generation(path):
        return None
    try:
        own = read_generation(path)
    except CheckpointError:
        if request.resume == "auto":
            raise
        return None  # it is set aside, as any other run
    if request.resume != "auto":
        old = own.state.get("config")
        if not isinstance(old, dict) or old.get("resume") != request.resume:
            return None
        # "none" starts over each time that a user asks, but not when SLURM starts the job again
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        again = restarted and own.state.get("job") == os.environ.get("SLURM_JOB_ID")
        if request.config.differences(old) or not (again or request.resume != "none"):
            return None
    require_run(own.state, own.source)
    return own


def _named_checkpoint(request: RunRequest, fits: Fits) -> atomic_save.Generation | None:
    """The checkpoint that --resume PATH names, which must fit; None for the other modes."""
    if request.resume in ("auto", "none"):
        return None
    path = Path(request.resume)
    if not has_generation(path):
        raise CheckpointError(f"--resume {path}: no such file")
    start = read_generation(path)
    fits(start.state, start.source)
    return start


def require_run(state: dict, source: Path) -> None:
    """CheckpointError unless a checkpoint has what every `last.pt` has."""
    kinds = {"resume": dict, "history": list, "config": dict, "state_dict": dict, "best": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    if not wrong:
        parts = [part for part in (state["best"], state.get("progress")) if part]
        figures = [part.get("figures") if isinstance(part, dict) else None for part in parts]
        if not all(isinstance(f, dict) and "epoch" in f for f in state["history"] + figures):
            wrong = ["figures of its epochs"]
        elif not all(isinstance(t, Tensor) for t in state["state_dict"].values()):
            wrong = ["tensors"]
    if wrong:
        raise CheckpointError(
            f"{source} is no last.pt, from which a run can go on: it has no {wrong[0]}; start over "
            "with --no-resume"
        )


def _position(state: dict) -> str:
    """Where a checkpoint was saved, in words."""
    if progress := state.get("progress"):
        return f"in epoch {progress['figures']['epoch']}, after step {progress['batch']}"
    return f"after epoch {state['history'][-1]['epoch'] if state['history'] else 0}"


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
    known, best, path = None, state["best"], folder / "best.pt"
    with suppress(CheckpointError):  # also if there is none
        known = atomic_save.read_file(path)["figures"]
    if best and known != best["figures"]:
        atomic_save.write_file(best, path)
