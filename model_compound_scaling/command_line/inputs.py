"""From a command line to what it names: the checkpoint's network, the data. What needs torch is
imported where it is used: some of this is asked before torch is loaded."""

import argparse
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data.class_names import match_classes
from data.datasets import choose_stats, find_dataset
from data.errors import DataError, UserError
from model_compound_scaling.machine import place, signals
from model_compound_scaling.machine.log import Log
from model_compound_scaling.networks.registry import NetworkSpec, canonical_name, table_row

if TYPE_CHECKING:
    import torch

    from data import Data
    from model_compound_scaling.checkpoints import Checkpoint


def open_checkpoint(
    args: argparse.Namespace, *, flag: str, folder: Path, read: Callable | None = None
) -> "tuple[Checkpoint, NetworkSpec]":
    """The checkpoint that `flag` names and the network it holds. `read`: path -> Checkpoint, for
    stages whose files come in more formats."""
    from model_compound_scaling.checkpoints.network_checkpoint import find_file, read_checkpoint
    from model_compound_scaling.checkpoints.recognition import network_spec

    name = vars(args)[flag.strip("-").replace("-", "_")]
    checkpoint = (read or read_checkpoint)(find_file(name, folder=folder, flag=flag))
    num_classes, told_by = _told_classes(args, described=checkpoint.network is not None)
    spec = network_spec(
        checkpoint,
        model=args.model and canonical_name(args.model),
        depth_width=args.dw_multps and tuple(m**args.phi for m in args.dw_multps),
        num_classes=num_classes,
        told_by=told_by,
        origin=None if args.weights_origin == "auto" else args.weights_origin,
    )
    for line in checkpoint.lines:
        Log()(f"{checkpoint.path}: {line}")
    return checkpoint, spec


def _told_classes(args: argparse.Namespace, *, described: bool) -> tuple[int | None, str]:
    """The number of classes that --dataset or the class folders of --data-path tell; which of
    them."""
    row = find_dataset(args.dataset or "ImageFolder", args.image_size or 1)
    if row.classes or row.source != "folders" or not args.data_path or described:
        return row.classes, "--dataset"  # where a file says another, open_data compares the two
    from data.image_files import class_folders

    for split in ("val", "train"):
        with suppress(DataError):  # open_data says what is missing, if it is needed
            return len(class_folders(args.data_path, split)), "--data-path"
    return None, ""


def input_size(args: argparse.Namespace, model: str, recorded: dict) -> int:
    """Height and width of the input: the flag's, the checkpoint's, or what the network of the table
    is for. Networks from elsewhere are for nothing in particular: then the data set's counts."""
    row, name = table_row(model), args.dataset or recorded.get("dataset")
    from_data = find_dataset(name, 1).image_size if name and row.family == "other" else None
    return args.image_size or recorded.get("image_size") or from_data or row.image_size


def open_data(
    args: argparse.Namespace,
    *,
    spec: NetworkSpec,
    recorded: dict,
    device: "torch.device",
    splits: tuple[str, ...] = ("train", "val"),
    image_size: int | None = None,
) -> "Data":
    """The data set as flags say, then as the checkpoint recorded; `image_size` overrides both. Its
    classes must be the checkpoint's, and get their numbers."""
    from data.batches import WHOLE, Part
    from data.loading import DataOptions, load_data

    name = args.dataset or recorded.get("dataset")
    if name is None:
        raise UserError("--dataset is needed: the checkpoint does not say what it was trained on")
    row = table_row(spec.model)
    flags = {k: v for k, v in vars(args).items() if k in DataOptions.__dataclass_fields__}
    flags |= _holdout(args, recorded)
    data = load_data(
        name,
        DataOptions(**flags),
        image_size=image_size or input_size(args, spec.model, recorded),
        channels=row.channels,
        normalize=args.normalize or _recorded_statistics(recorded) or "dataset",
        eval_crop=row.eval_crop,
        class_names=() if args.ignore_class_names else _recorded_classes(recorded, spec),
        sharing=place.find_place().here,
        worker_init=signals.ignore_in_worker,
        device=device,
        splits=splits,
        part=Part(place.rank(), place.world_size()) if "train" in splits else WHOLE,
    )
    if spec.num_classes not in (None, data.classes):
        flag = "--data-path" if find_dataset(name, 1).source == "folders" else "--dataset"
        raise DataError(
            f"{name} has {data.classes} classes, the network {spec.num_classes}: "
            f"choose the {flag} the network was trained on"
        )
    if data.renumbered:
        Log()(data.renumbered)
    return data


def known_input(args: argparse.Namespace, spec: NetworkSpec, recorded: dict) -> dict:
    """What is known of the network's images without opening a data set, as `describe` has it: what
    the checkpoint recorded, or flags say instead. Without "mean" if neither tells."""
    size, channels = input_size(args, spec.model, recorded), table_row(spec.model).channels
    known = {**recorded, "image_size": size}
    row = find_dataset(args.dataset or recorded.get("dataset") or "ImageFolder", size)
    if args.dataset and row.name != recorded.get("dataset"):
        known = {"dataset": row.name, "image_size": size}  # other images, other classes
    normalize = args.normalize or _recorded_statistics(recorded)
    if normalize or "dataset" in known:
        mean, std = choose_stats(row, normalize or "dataset", channels)
        known |= {"mean": list(mean), "std": list(std)}
    return known


def require_classes(args: argparse.Namespace, spec: NetworkSpec, recorded: dict) -> None:
    """DataError if --data-path holds folders of other classes; for where no data set is opened."""
    from data.image_files import class_folders

    name = args.dataset or recorded.get("dataset") or "ImageFolder"
    folders = args.data_path and find_dataset(name, args.image_size or 1).source == "folders"
    if folders and not args.ignore_class_names and os.path.isdir(args.data_path / "val"):
        found = [folder.name for folder in class_folders(args.data_path, "val")]
        match_classes(found, _recorded_classes(recorded, spec))


def require_same_classes(state: dict, data: "Data", *, ignore: bool) -> None:
    """DataError if a run's last.pt was trained on classes of other names or numbers."""
    known = state.get("data")
    names = known.get("class_names") if isinstance(known, dict) else None
    if ignore or not isinstance(names, list | tuple):
        return
    if said := match_classes(data.class_names, [str(name) for name in names]).renumbered():
        raise DataError(f"{said}; go on all the same with --ignore-class-names")


def _recorded_classes(recorded: dict, spec: NetworkSpec) -> Sequence[str]:
    """The names of the network's classes; none if the checkpoint does not name just those."""
    names = recorded.get("class_names", ())
    return names if len(names) == (spec.num_classes or len(names)) else ()


def _holdout(args: argparse.Namespace, recorded: dict) -> dict:
    """Which training images decide: what flags say, else those of the stage before, which have not
    been trained on."""
    percent = getattr(args, "holdout", None)
    known = {"holdout": recorded.get("holdout", 0.0)}
    known["holdout_seed"] = recorded.get("holdout_seed", args.seed)
    if percent in (None, known["holdout"]):
        return known
    if known["holdout"]:
        Log()(f"warning: --holdout {percent:g}, but {known['holdout']:g} made the checkpoint")
    return {"holdout": percent, "holdout_seed": args.seed}


def _recorded_statistics(recorded: dict) -> tuple | None:
    return (recorded["mean"], recorded["std"]) if "mean" in recorded else None


def fingerprint(class_names: Sequence[str]) -> str:
    """A hash of the classes, for a run's configuration: images may move, classes may not change."""
    digest = hashlib.sha256("\n".join(class_names).encode(errors="surrogateescape")).hexdigest()
    return f"{len(class_names)} ({digest[:8]})"


def describe(data: "Data") -> dict:
    """What a checkpoint records of its data, so that later stages need no flags."""
    lists = {"mean": list(data.mean), "std": list(data.std), "class_names": list(data.class_names)}
    known = {"dataset": data.name, "image_size": data.image_size, **lists}
    if data.holdout:
        known |= {"holdout": data.holdout, "holdout_seed": data.holdout_seed}
    return known
