#!/usr/bin/env python3
"""Stage 1: train a network, or a grid of compound-scaled ones.

Examples:
  python -u run_compound_scaling.py --dataset Shapes --grid 1 1 --phi 1 --epochs 10
  python -u run_compound_scaling.py --dataset CIFAR100 --grid 1.4 1.2 --phi 3.5 --epochs 250
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.load import find_dataset
from model_compound_scaling import cli, opening
from model_compound_scaling.registry import (
    REGISTRY,
    THESIS_SCALING,
    NetworkSpec,
    canonical_name,
    table_row,
)
from model_compound_scaling.runs import Log, copy_best
from model_compound_scaling.search import results_table, scaling_points, train_point
from model_compound_scaling.training import DEFAULT_RECIPE, RECIPES, SCHEDULES

OUTPUT = Path(__file__).parent / "model_compound_scaling" / "saved_models"


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog="run_compound_scaling.py", description=__doc__)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(REGISTRY)}, torchvision:NAME, or module:function (a builder that "
        "takes num_classes) (default: cifar_micronet, image_micronet or lenet-5, by the images)",
    )
    network.add_argument(
        "--grid",
        type=cli.multiplier,
        nargs="+",
        metavar="D W",
        help="pairs of depth and width multipliers of a MicroNet, one after the other "
        "(default: 1.4 1.2)",
    )
    network.add_argument(
        "--phi",
        type=cli.exponent,
        nargs="+",
        metavar="PHI",
        help="exponents of both multipliers, for MicroNets (default: 3.5)",
    )
    training = parser.add_argument_group("training (SGD with Nesterov momentum)")
    training.add_argument(
        "--epochs",
        type=cli.positive,
        metavar="N",
        help="passes over the training images (default: 200, EfficientNet 90)",
    )
    training.add_argument(
        "--start-epoch",
        type=cli.natural,
        default=0,
        metavar="N",
        help="epochs to leave out, schedule included; a resumed run knows its own",
    )
    training.add_argument(
        "--lr", type=cli.non_negative, default=0.1, metavar="X", help="first learning rate"
    )
    training.add_argument(
        "--momentum", type=cli.non_negative, default=0.9, metavar="X", help="0 for plain SGD"
    )
    training.add_argument(
        "--weight-decay",
        type=cli.non_negative,
        metavar="X",
        help="L2 penalty (default: 5e-4, EfficientNet 1e-4)",
    )
    training.add_argument(
        "--schedule",
        choices=tuple(SCHEDULES),
        help="learning rate: cosine to 0, or divided by 10 every 30 epochs "
        "(default: cosine, EfficientNet step)",
    )
    cli.add_data_flags(parser, training=True, default="CIFAR100")
    cli.add_machine_flags(parser)
    cli.add_run_flags(parser, output=OUTPUT)
    return parser


def default_model(dataset: str, image_size: int | None) -> str:
    """The baseline for a data set's images."""
    row = find_dataset(dataset, image_size)
    if row.channels == 1:
        return "lenet-5"
    return "cifar_micronet" if (image_size or row.image_size) <= 64 else "image_micronet"


def body(args: argparse.Namespace) -> None:
    args.dataset = args.dataset or "CIFAR100"
    model = canonical_name(args.model or default_model(args.dataset, args.image_size))
    row = table_row(model)
    if row.family != "micronet" and (args.grid or args.phi):
        raise UserError(f"--grid and --phi scale MicroNets; {model} has one size")
    recipe = RECIPES.get(row.family, DEFAULT_RECIPE)
    for name in ("epochs", "weight_decay", "schedule"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    config = cli.config(args, model=model)
    if args.start_epoch >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch} is not before --epochs {args.epochs}")
    device = opening.choose_device(args.cuda)
    classes = find_dataset(args.dataset, args.image_size).classes
    data = opening.open_data(args, spec=NetworkSpec(model, classes), recorded={}, device=device)
    points = scaling_points(
        model,
        num_classes=data.classes,
        grid=args.grid or list(THESIS_SCALING[:2]),
        phis=args.phi or [THESIS_SCALING[2]],
    )
    cli.require_single(args.resume, points)
    runs = [
        train_point(
            point,
            folder=args.output,
            config=config | {"network": point.name},
            resume=args.resume,
            data=data,
            recorded=opening.describe(data),
            device=device,
        )
        for point in points
    ]
    log = Log(args.output)
    log(results_table(runs))
    copy_best(runs, args.output / "best_model.pt")
    log(f"best network: {args.output / 'best_model.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return cli.run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
