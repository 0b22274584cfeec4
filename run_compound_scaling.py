#!/usr/bin/env python3
"""Stage 1: train a network, or a grid of compound-scaled ones.

Examples:
  python -u run_compound_scaling.py --dataset Shapes --grid 1 1 --phi 1 --epochs 10
  python -u run_compound_scaling.py --dataset CIFAR100 --grid 1.4 1.2 --phi 3.5 --epochs 250
  python -u run_compound_scaling.py --dataset CIFAR100 --grid auto --phi 1.5 2 3 3.5 --dry-run
  torchrun --nproc_per_node 4 run_compound_scaling.py --dataset CIFAR100 --target-accuracy 80
"""

# What needs torch is imported in the functions that run after all flags are checked: it takes
# seconds to load, and --help and mistakes must not wait for it.

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.datasets import Dataset, find_dataset
from data.errors import UserError
from model_compound_scaling.command_line import entry, inputs, shared_flags
from model_compound_scaling.command_line import flag_values as kind
from model_compound_scaling.command_line.parser import SWITCH, Parser
from model_compound_scaling.networks.registry import THESIS_SCALING, canonical_name, table_row
from model_compound_scaling.search.points import Point, parse_grid, possible_points, scaled_point
from model_compound_scaling.training.recipe import AMP, SCHEDULES, Recipe, from_flags

if TYPE_CHECKING:
    from torch import nn

    from data import Data
    from model_compound_scaling.checkpoints import Checkpoint
    from model_compound_scaling.networks.registry import NetworkSpec
    from model_compound_scaling.runs import Configuration

TARGET_PHIS = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
# training recipes: what these flags are unless given; efficientnet is a family of the registry
RECIPE = {"epochs": 200, "weight_decay": 5e-4, "schedule": "cosine"}
RECIPES = {"efficientnet": {"epochs": 90, "weight_decay": 1e-4, "schedule": "step"}}
OUTPUT = Path(__file__).parent / "model_compound_scaling" / "saved_models"


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="run_compound_scaling.py", description=__doc__)
    add = parser.section("network")
    add("--model", None, None, "NAME", shared_flags.MODELS +
        " (default: cifar_micronet, image_micronet or lenet-5, by the images)")
    add("--init", None, None, "FILE", "start from the weights of a trained network of the same "
        "architecture, a checkpoint of any origin; its classifier is new if it has other classes "
        "in number (default: random weights)")
    add = parser.section("search (MicroNets)")
    add("--grid", kind.grid_value, None, "D W", "pairs of depth and width multipliers, one after "
        "the other; auto: all with d w^2 r^2 near 2. More than one pair are trained with phi 1, "
        "and the best goes on (default: 1.4 1.2)", nargs="+", incidental=True)
    add("--phi", kind.exponent, None, "PHI",
        "exponents of the best pair's multipliers, 0 for the baseline (default: 3.5; with "
        "--target-accuracy 1 1.5 2 2.5 3 3.5 4)", nargs="+", incidental=True)
    add("--scale-resolution", SWITCH, False, None, "scale the images, too: --grid takes triples "
        "with the multiplier of the image size", incidental=True)
    add("--target-accuracy", kind.percent, None, "A",
        "walk phi upward and stop at the first network with A percent top-1", incidental=True)
    add("--dry-run", SWITCH, False, None,
        "only print the networks with their parameters, MACs and predicted cost", incidental=True)
    add("--shard", kind.shard, "1/1", "I/N", "train each N-th network, from the I-th on; other "
        "machines train the others into the same --output", incidental=True)
    add = parser.section("training (SGD with Nesterov momentum)")
    add("--epochs", kind.positive, None, "N",
        "passes over the training images (default: 200, EfficientNet 90)")
    add("--start-epoch", kind.natural, 0, "N",
        "epochs to leave out, schedule included; a resumed run knows its own")
    add("--lr", kind.non_negative, None, "X",
        "first learning rate (default: 0.1, with --init 0.01)")
    add("--momentum", kind.non_negative, 0.9, "X", "0 for plain SGD")
    add("--weight-decay", kind.non_negative, None, "X",
        "L2 penalty (default: 5e-4, EfficientNet 1e-4)")
    add("--ema", kind.decay, 0.0, "DECAY",
        "evaluate and keep the exponential moving average of the weights, as 0.999; 0: off")
    shared_flags.add_recipe_flags(add, schedules=SCHEDULES, amp=AMP, schedule=None,
                                  default=" (default: cosine, EfficientNet step)")
    shared_flags.add_data_flags(parser, training=True, default="CIFAR100")
    shared_flags.add_machine_flags(parser, training=True)
    shared_flags.add_run_flags(parser, output=OUTPUT)
    return parser
# fmt: on


def default_model(dataset: str, image_size: int | None) -> str:
    """The baseline for a data set's images."""
    row = find_dataset(dataset, image_size)
    if row.channels == 1:
        return "lenet-5"
    return "cifar_micronet" if (image_size or row.image_size) <= 64 else "image_micronet"


def check(args: argparse.Namespace, family: str) -> None:
    """UserError for flags that contradict each other; fills in the recipe's defaults."""
    scaling = ("grid", "phi", "scale_resolution")
    given = [f"--{name.replace('_', '-')}" for name in scaling if getattr(args, name)]
    if family != "micronet" and given:
        raise UserError(f"{given[0]} scales MicroNets; {args.model} has one size")
    if args.init and given:
        raise UserError(f"{given[0]} does not go with --init: the network is the file's")
    if args.lr is None:
        args.lr = 0.01 if args.init else 0.1
    if "auto" in (args.grid or []) and len(args.grid) > 1:
        raise UserError("--grid auto stands alone")
    for name, default in RECIPES.get(family, RECIPE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name in ("start_epoch", "warmup_epochs"):
        if getattr(args, name) >= args.epochs:
            given = f"--{name.replace('_', '-')} {getattr(args, name)}"
            raise UserError(f"{given} is not below --epochs {args.epochs}")


def scaling(args: argparse.Namespace, family: str) -> tuple[list[tuple], list[float]]:
    """The grid of (d, w, r) and the exponents that the flags ask for."""
    if family != "micronet":
        return [(1.0, 1.0, 1.0)], [1.0]
    depth, width, phi = THESIS_SCALING
    phis = args.phi or (TARGET_PHIS if args.target_accuracy else [phi])
    if len(set(phis)) < len(phis):
        raise UserError("--phi names the same exponent twice")
    default = [depth, width, 1.0] if args.scale_resolution else [depth, width]
    return parse_grid(args.grid or default, resolution=args.scale_resolution), phis


def class_names(args: argparse.Namespace, dataset: Dataset) -> list[str] | None:
    """The class folders of a data set that is read from them; a dry run needs them only to count
    the classes."""
    if dataset.source != "folders" or (dataset.classes and args.dry_run):
        return None
    from data.image_files import class_folders

    return [folder.name for folder in class_folders(args.data_path, "train")]


def open_init(args: argparse.Namespace) -> "tuple[Checkpoint, NetworkSpec, nn.Module]":
    """What --init names, with the network that it holds."""
    from model_compound_scaling.checkpoints import load_network, read_checkpoint
    from model_compound_scaling.checkpoints.network_checkpoint import find_file
    from model_compound_scaling.checkpoints.recognition import network_spec
    from model_compound_scaling.machine import Log

    checkpoint = read_checkpoint(find_file(args.init, folder=OUTPUT, flag="--init"))
    spec = network_spec(checkpoint, model=args.model and canonical_name(args.model))
    if spec.activations:
        raise UserError(
            f"--init {args.init}: its activations have few bits, which this stage does not train: "
            "name the network that got them"
        )
    network = load_network(checkpoint, spec)
    Log()(*checkpoint.lines)
    return checkpoint, spec, network


def body(args: argparse.Namespace, configuration: "Callable[[dict], Configuration]") -> None:
    args.dataset = args.dataset or "CIFAR100"
    init, recorded, spec = None, {}, None
    if args.init:
        checkpoint, spec, init = open_init(args)
        recorded = {k: v for k, v in checkpoint.data.items() if k in ("mean", "std")}
        args.model = spec.model
    args.model = canonical_name(args.model or default_model(args.dataset, args.image_size))
    family = table_row(args.model).family
    check(args, family)
    grid, phis = scaling(args, "" if args.init else family)
    dataset = find_dataset(args.dataset, args.image_size)
    names, size = class_names(args, dataset), inputs.input_size(args, args.model, {})
    classes = dataset.classes or len(names)
    point = partial(scaled_point, args.model, num_classes=classes, image_size=size, like=spec)
    points = possible_points(point, grid, phis)
    entry.require_single(args.resume, len(points))
    device = entry.start(args)

    from model_compound_scaling.machine import Log
    from model_compound_scaling.search import Search, Trainer, Training, require_memory
    from model_compound_scaling.search.results_table import rows, to_text

    if args.dry_run:
        table = rows(dict.fromkeys(points), predicted=True)
        Log()(*to_text(table, predicted=True).splitlines())
        return
    if args.target_accuracy:  # the walk may end before it comes to the largest
        points = possible_points(point, grid, [min(phis)])
    for possible in points:
        require_memory(possible, device, averaged=args.ema > 0)

    def open_data(point: Point) -> "Data":
        place = {"device": device, "image_size": point.image_size}
        return inputs.open_data(args, spec=point.spec, recorded=recorded, **place)

    training = from_flags(Training, vars(args), recipe=from_flags(Recipe, vars(args)))
    known = names and inputs.fingerprint(names)
    request = entry.run_request(args, configuration, args.output, device, classes=known)
    shard, count = map(int, args.shard.split("/"))
    trainer = Trainer(training, request, open_data, device, Log(args.output), shard, count, init)
    search = Search(trainer, point, target=args.target_accuracy)
    try:
        found = search.run(grid, phis)
    except UserError:
        if search.trained:  # what there is, before the error, which is the one that counts
            with suppress(UserError):
                trainer.conclude(search, None)
        raise
    trainer.conclude(search, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = build_parser()
    return entry.run(partial(body, configuration=parser.configuration), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
