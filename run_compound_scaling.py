#!/usr/bin/env python3
"""Stage 1: train a network, or a grid of compound-scaled ones.

Examples:
  python -u run_compound_scaling.py --dataset Shapes --grid 1 1 --phi 1 --epochs 10
  python -u run_compound_scaling.py --dataset CIFAR100 --grid 1.4 1.2 --phi 3.5 --epochs 250
  python -u run_compound_scaling.py --dataset CIFAR100 --grid auto --phi 1.5 2 3 3.5 --dry-run
  torchrun --nproc_per_node 4 run_compound_scaling.py --dataset CIFAR100 --target-accuracy 80
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from data import Data
from data.datasets import find_dataset
from data.errors import UserError
from data.sources import folder_classes
from model_compound_scaling.checkpoints.atomic_save import make_folder, write_text
from model_compound_scaling.command_line import flag_values, inputs
from model_compound_scaling.command_line.entry import configuration, require_single, run, start
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.command_line.shared_flags import (
    add_data_flags,
    add_machine_flags,
    add_run_flags,
)
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.log import Log
from model_compound_scaling.networks.registry import (
    REGISTRY,
    THESIS_SCALING,
    NetworkSpec,
    Row,
    canonical_name,
    table_row,
)
from model_compound_scaling.runs.folder_lock import turn
from model_compound_scaling.runs.history import History, copy_best, finished
from model_compound_scaling.runs.resume import RunRequest
from model_compound_scaling.runs.save_interval import Interval
from model_compound_scaling.search.points import (
    Multipliers,
    Point,
    parse_grid,
    possible_points,
    scaled_point,
    single_point,
)
from model_compound_scaling.search.recipes import DEFAULT_RECIPE, RECIPES
from model_compound_scaling.search.results_table import rows, to_csv, to_text
from model_compound_scaling.search.search import Search
from model_compound_scaling.search.train_network import Training, require_memory, train_point
from model_compound_scaling.training.recipe import AMP, SCHEDULES, Options, from_flags

TARGET_PHIS = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
OUTPUT = Path(__file__).parent / "model_compound_scaling" / "saved_models"


def build_parser() -> Parser:
    parser = Parser(prog="run_compound_scaling.py", description=__doc__)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(REGISTRY)}, torchvision:NAME, or module:function (a builder that "
        "takes num_classes) (default: cifar_micronet, image_micronet or lenet-5, by the images)",
    )
    search = parser.add_argument_group("search (MicroNets)")
    search.add_argument(
        "--grid",
        type=flag_values.grid_value,
        nargs="+",
        metavar="D W",
        help="pairs of depth and width multipliers, one after the other; auto: all with "
        "d w^2 r^2 near 2. More than one pair are trained with phi 1, and the best goes on "
        "(default: 1.4 1.2)",
    )
    search.add_argument(
        "--phi",
        type=flag_values.exponent,
        nargs="+",
        metavar="PHI",
        help="exponents of the best pair's multipliers, 0 for the baseline (default: 3.5; with "
        "--target-accuracy 1 1.5 2 2.5 3 3.5 4)",
    )
    search.add_argument(
        "--scale-resolution",
        action="store_true",
        help="scale the images, too: --grid takes triples with the multiplier of the image size",
    )
    search.add_argument(
        "--target-accuracy",
        type=flag_values.percent,
        metavar="A",
        help="walk phi upward and stop at the first network with A percent top-1",
    )
    search.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the networks with their parameters, MACs and predicted cost",
    )
    search.add_argument(
        "--shard",
        type=flag_values.shard,
        default="1/1",
        metavar="I/N",
        help="train each N-th network, from the I-th on; other machines train the others into "
        "the same --output",
    )
    training = parser.add_argument_group("training (SGD with Nesterov momentum)")
    training.add_argument(
        "--epochs",
        type=flag_values.positive,
        metavar="N",
        help="passes over the training images (default: 200, EfficientNet 90)",
    )
    training.add_argument(
        "--start-epoch",
        type=flag_values.natural,
        default=0,
        metavar="N",
        help="epochs to leave out, schedule included; a resumed run knows its own",
    )
    training.add_argument(
        "--lr", type=flag_values.non_negative, default=0.1, metavar="X", help="first learning rate"
    )
    training.add_argument(
        "--momentum",
        type=flag_values.non_negative,
        default=0.9,
        metavar="X",
        help="0 for plain SGD",
    )
    training.add_argument(
        "--weight-decay",
        type=flag_values.non_negative,
        metavar="X",
        help="L2 penalty (default: 5e-4, EfficientNet 1e-4)",
    )
    training.add_argument(
        "--schedule",
        choices=tuple(SCHEDULES),
        help="learning rate: cosine to 0, or divided by 10 every 30 epochs "
        "(default: cosine, EfficientNet step)",
    )
    training.add_argument(
        "--warmup-epochs",
        type=flag_values.natural,
        default=0,
        metavar="N",
        help="epochs in which the learning rate rises to --lr",
    )
    training.add_argument(
        "--label-smoothing",
        type=flag_values.decay,
        default=0.0,
        metavar="X",
        help="share of each label that goes to all classes alike",
    )
    training.add_argument(
        "--ema",
        type=flag_values.decay,
        default=0.0,
        metavar="DECAY",
        help="evaluate and keep the exponential moving average of the weights, as 0.999; 0: off",
    )
    for name, what in (("mixup", "mix pairs of images"), ("cutmix", "paste a part of one another")):
        training.add_argument(
            f"--{name}",
            type=flag_values.non_negative,
            default=0.0,
            metavar="ALPHA",
            help=f"{what} with shares from Beta(ALPHA, ALPHA); 0: off",
        )
    training.add_argument(
        "--amp",
        choices=tuple(AMP),
        default="off",
        help="mixed precision; fp16 with a scaled loss",
    )
    training.add_argument(
        "--channels-last", action="store_true", help="the memory format that tensor cores like"
    )
    training.add_argument(
        "--compile", action="store_true", help="compile the network with torch.compile"
    )
    add_data_flags(parser, training=True, default="CIFAR100")
    add_machine_flags(parser, training=True)
    add_run_flags(parser, output=OUTPUT)
    return parser


def default_model(dataset: str, image_size: int | None) -> str:
    """The baseline for a data set's images."""
    row = find_dataset(dataset, image_size)
    if row.channels == 1:
        return "lenet-5"
    return "cifar_micronet" if (image_size or row.image_size) <= 64 else "image_micronet"


def check(args: argparse.Namespace, row: Row) -> None:
    """UserError for flags that contradict each other; fills in the recipe's defaults."""
    scaling = ("grid", "phi", "scale_resolution", "target_accuracy")
    given = [f"--{name.replace('_', '-')}" for name in scaling if getattr(args, name)]
    if row.family != "micronet" and given:
        raise UserError(f"{given[0]} scales MicroNets; {args.model} has one size")
    if "auto" in (args.grid or []) and len(args.grid) > 1:
        raise UserError("--grid auto stands alone")
    recipe = RECIPES.get(row.family, DEFAULT_RECIPE)
    for name in ("epochs", "weight_decay", "schedule"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    for name in ("start_epoch", "warmup_epochs"):
        if getattr(args, name) >= args.epochs:
            flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
            raise UserError(f"{flag} is not below --epochs {args.epochs}")


def scaling(args: argparse.Namespace) -> tuple[list[Multipliers], list[float]]:
    """The grid and the exponents that the flags ask for."""
    if table_row(args.model).family != "micronet":
        return [(1.0, 1.0, 1.0)], [1.0]
    default = [*THESIS_SCALING[:2], 1.0] if args.scale_resolution else list(THESIS_SCALING[:2])
    values = "auto" if args.grid == ["auto"] else args.grid or default
    phis = args.phi or (TARGET_PHIS if args.target_accuracy else [THESIS_SCALING[2]])
    if len(set(phis)) < len(phis):
        raise UserError("--phi names the same exponent twice")
    return parse_grid(values, resolution=args.scale_resolution), phis


class Trainer:
    """Trains the points of a search in turn, as the flags say."""

    def __init__(
        self, args: argparse.Namespace, *, classes: str | None, device: torch.device, log: Log
    ) -> None:
        """`classes`: the fingerprint of the class folders, if there are any."""
        self.args, self.classes, self.device, self.log = args, classes, device, log
        self.data: Data | None = None
        first, count = map(int, args.shard.split("/"))
        self.mine = itertools.cycle([i == first - 1 for i in range(count)])

    def __call__(self, point: Point) -> History | None:
        """The point's history; None if it is another machine's, which has not finished it."""
        args, mine = self.args, next(self.mine)
        config = configuration(args, network=point.name, classes=self.classes)
        done = None
        if args.resume == "auto":
            done = processes.from_main(
                lambda: finished(args.output / point.name, config=config, epochs=args.epochs)
            )
        if done:
            self.log(f"{point.name}: already trained for {done.epochs_done} epochs")
        if done or not mine:
            return done
        require_memory(point, self.device, averaged=args.ema > 0)
        data = self.open_data(point)
        return train_point(
            point,
            from_flags(Training, vars(args), options=from_flags(Options, vars(args))),
            RunRequest(
                args.output / point.name,
                config,
                resume=args.resume,
                override=args.resume_override,
                interval=Interval.parse(args.checkpoint_every),
            ),
            data=data,
            recorded=inputs.describe(data),
            device=self.device,
        )

    def open_data(self, point: Point) -> Data:
        """The data at the point's image size; the last one stays open."""
        if self.data is None or self.data.image_size != point.image_size:
            self.data = None  # make room first
            self.data = inputs.open_data(
                self.args,
                spec=point.spec,
                recorded={},
                device=self.device,
                image_size=point.image_size,
            )
        return self.data


def conclude(search: Search, args: argparse.Namespace, log: Log, found: Point | None) -> None:
    """Print and write the table, and copy the best network, or the one that reached the target."""
    histories = [search.trained[found]] if found else list(search.trained.values())
    make_folder(args.output)  # there may have been nothing to train here
    with turn(args.output):
        winner = copy_best(histories, args.output / "best_model.pt")
        table = rows(search.trained, search.missing)
        log(to_text(table))
        if processes.is_main():
            write_text(to_csv(table), args.output / "results.csv")
    if search.missing:
        names = ", ".join(point.name for point in search.missing)
        log(f"not trained yet: {names}; once they are, call this again to go on")
    if winner is None:
        return
    if args.target_accuracy and not search.missing:
        outcome = "reaches" if found else "is the best; none reaches"
        log(
            f"{winner.folder.name} {outcome} {args.target_accuracy:g} %: "
            f"top-1 {winner.best['val_top1']:.2f} %"
        )
    log(f"best network: {args.output / 'best_model.pt'}")


def body(args: argparse.Namespace) -> None:
    args.dataset = args.dataset or "CIFAR100"
    args.model = canonical_name(args.model or default_model(args.dataset, args.image_size))
    row = table_row(args.model)
    check(args, row)
    grid, phis = scaling(args)
    dataset = find_dataset(args.dataset, args.image_size)
    names = None
    if not (dataset.classes and args.dry_run):  # which needs no data
        names = folder_classes(dataset, args.data_path)
    classes = dataset.classes or len(names)
    make = scaled_point if row.family == "micronet" else single_point
    size = inputs.input_size(args, NetworkSpec(args.model, classes), {})
    point = partial(make, args.model, num_classes=classes, image_size=size)
    points = possible_points(point, grid, phis)
    require_single(args.resume, len(points))
    device = start(args)
    if args.dry_run:
        Log()(to_text(rows(dict.fromkeys(points), predicted=True), predicted=True))
        return
    if args.target_accuracy:  # the walk may end before it comes to the largest
        points = possible_points(point, grid, [min(phis)])
    for possible in points:
        require_memory(possible, device, averaged=args.ema > 0)
    log = Log(args.output)
    trainer = Trainer(args, classes=inputs.fingerprint(names), device=device, log=log)
    search = Search(trainer, point, target=args.target_accuracy)
    try:
        found = search.run(grid, phis)
    except UserError:
        if search.trained:  # what there is, before the error, which is the one that counts
            with suppress(UserError):
                conclude(search, args, log, None)
        raise
    conclude(search, args, log, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
