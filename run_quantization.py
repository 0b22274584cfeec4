#!/usr/bin/env python3
"""Stage 2: make a trained network ternary and sparse (EC2T), or sparsify its other layers (ECP).

Examples:
  python -u run_quantization.py --model-dict net.pt --epochs 20 --retrain-epochs 20
  python -u run_quantization.py --model-dict ternary.pt --do-prune --epochs 10 --retrain-epochs 0
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from data.errors import UserError
from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.command_line import flag_values, inputs
from model_compound_scaling.command_line.entry import configuration, require_single, run, start
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.command_line.shared_flags import (
    add_data_flags,
    add_machine_flags,
    add_network_flags,
    add_run_flags,
)
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.log import Log
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_compound_scaling.runs.folder_lock import turn
from model_compound_scaling.runs.history import copy_best
from model_compound_scaling.runs.resume import RunRequest
from model_compound_scaling.runs.save_interval import Interval
from model_compound_scaling.training.recipe import from_flags
from model_quantization.grid import grid_points, results, results_csv, results_table
from model_quantization.plots import plot_pareto, plot_ternarization, require_matplotlib
from model_quantization.two_phases import Quantizing, quantize_point
from model_scoring.counting.scoring import score

STAGE = Path(__file__).parent / "model_quantization"
METHODS = ("ec2t", "ttq", "nearest")
SOURCES, OUTPUT = STAGE / "trained_fp_models", STAGE / "saved_models"


def build_parser() -> Parser:
    parser = Parser(prog="run_quantization.py", required="--model-dict FILE", description=__doc__)
    what = parser.add_argument_group("what is quantized")
    what.add_argument(
        "--model-dict",
        required=True,
        metavar="FILE",
        help="checkpoint to start from: a name in model_quantization/trained_fp_models, or a path",
    )
    what.add_argument(
        "--ternarize",
        type=flag_values.regex,
        metavar="REGEX",
        help="ternarize the weights whose name matches (default: the convolutions inside the "
        "blocks; of EfficientNets expand, project and head; of other networks all but the first)",
    )
    what.add_argument(
        "--do-prune",
        action="store_true",
        help="instead of ternarizing, prune the layers of the families below (none named: SE and "
        "fc); already ternary layers stay as they are",
    )
    families = {"se": "squeeze-and-excitation", "fc": "fully connected", "dw": "depthwise"}
    for family, layers in families.items():
        what.add_argument(
            f"--ec-pruning-{family}",
            dest="prune",
            action="append_const",
            const=family,
            help=f"prune the {layers} layers; alone, it implies --do-prune",
        )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=METHODS,
        default="ec2t",
        help="ec2t: entropy-constrained; nearest: to the nearest centroid, the same with gamma 0; "
        "ttq: trained ternary quantization, by a fixed threshold",
    )
    method.add_argument(
        "--levels",
        type=int,
        choices=(3, 5, 7, 15),
        default=3,
        help="values per layer, 0 among them; --ini-c-divrs places the outermost ones",
    )
    method.add_argument(
        "--ttq-threshold",
        type=flag_values.non_negative,
        nargs="+",
        default=[0.05],
        metavar="T",
        help="for ttq: weights below T x their layer's largest are zero; a list spans a grid",
    )
    strength = parser.add_argument_group("EC2T: lists span a grid")
    strength.add_argument(
        "--ini-c-divrs",
        type=flag_values.non_negative,
        nargs="+",
        default=[0.15, 0.3, 0.5],
        metavar="S",
        help="first centroids, as a share of each layer's largest and smallest weight",
    )
    strength.add_argument(
        "--lambda-max-divrs",
        type=flag_values.non_negative,
        nargs="+",
        default=[0.125, 0.15, 0.175],
        metavar="GAMMA",
        help="strength of the entropy constraint, as a share of each layer's largest lambda",
    )
    goal = strength.add_mutually_exclusive_group()
    goal.add_argument(
        "--target-sparsity",
        type=flag_values.percent,
        metavar="P",
        help="find gamma instead: so that P percent (+-1) of the quantized weights are zero",
    )
    goal.add_argument(
        "--target-params",
        type=flag_values.non_negative,
        metavar="N",
        help="find gamma instead: so that the network has N (+-2 %) published scoring parameters",
    )
    strength.add_argument(
        "--centroids",
        type=int,
        default=0,
        metavar="K",
        help="if not 0, find the first K centroids, K as --levels, by k-means that starts from "
        "--ini-c-divrs",
    )
    training = parser.add_argument_group("training (Adam)")
    training.add_argument(
        "--epochs",
        type=flag_values.natural,
        default=20,
        metavar="N",
        help="epochs with moving codes",
    )
    training.add_argument(
        "--retrain-epochs",
        type=flag_values.natural,
        default=15,
        metavar="N",
        help="epochs with frozen codes, from the best ternary epoch on",
    )
    training.add_argument(
        "--lr",
        type=flag_values.non_negative,
        default=1e-4,
        metavar="X",
        help="of all but the centroids",
    )
    training.add_argument(
        "--lr2", type=flag_values.non_negative, default=1e-5, metavar="X", help="of the centroids"
    )
    training.add_argument(
        "--weight-decay",
        type=flag_values.non_negative,
        default=5e-6,
        metavar="X",
        help="of the layers that are not quantized",
    )
    training.add_argument(
        "--eval",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also measure the accuracy before quantization and before training",
    )
    add_network_flags(parser)
    add_data_flags(parser, training=True, default="the checkpoint's, else CIFAR100")
    add_machine_flags(parser, training=True)
    add_run_flags(parser, output=OUTPUT)
    group = parser.add_argument_group("plots (need matplotlib)")
    group.add_argument(
        "--plot-pareto",
        type=Path,
        metavar="FILE.png",
        help="draw accuracy over zeros of the grid's networks",
    )
    group.add_argument(
        "--plot-ternarization",
        type=flag_values.boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="draw weights, centroids, entropy and zeros of each layer over the epochs to "
        "ternarization/*.png in each network's folder",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """UserError for flags that contradict each other."""
    if args.do_prune and not args.prune:
        args.prune = ["se", "fc"]
    if args.epochs + args.retrain_epochs == 0:
        raise UserError("--epochs and --retrain-epochs are both 0: nothing to do")
    has_goal = args.target_sparsity is not None or args.target_params is not None
    if has_goal and not args.epochs:
        raise UserError("targets are met in ternary epochs: --epochs must be at least 1")
    if args.method != "ec2t" and (has_goal or args.prune):
        raise UserError(f"--method {args.method} takes neither targets nor pruning: use ec2t")
    if args.method == "ttq" and (args.centroids or args.levels > 3):
        raise UserError("--method ttq has three levels, from 1: leave out --centroids and --levels")
    if args.prune and args.levels > 3:
        raise UserError("--levels is for quantization: pruned weights keep their own values")
    if args.centroids not in (0, args.levels):
        raise UserError(f"--centroids {args.centroids} does not go with --levels {args.levels}")
    if args.plot_ternarization or args.plot_pareto:
        require_matplotlib()


def count_parameters(spec: NetworkSpec, size: int) -> Callable:
    """network -> its published scoring parameters, at the precision of stage 3's defaults."""
    row = table_row(spec.model)

    def count(network: nn.Module) -> float:
        shape = (row.channels, size, size)
        scored = score(network, shape, family=row.family, rules=("published",))
        return scored.totals["published"].params

    return count


def body(args: argparse.Namespace) -> None:
    check(args)
    points = grid_points(
        args.method,
        scales=args.ini_c_divrs,
        gammas=args.lambda_max_divrs,
        thresholds=args.ttq_threshold,
        sparsity=args.target_sparsity,
        params=args.target_params,
    )
    require_single(args.resume, len(points))
    device = start(args)
    checkpoint, spec = inputs.open_checkpoint(
        args, name=args.model_dict, folder=SOURCES, flag="--model-dict"
    )
    if not args.dataset and "dataset" not in checkpoint.data:
        args.dataset = "CIFAR100"
    data = inputs.open_data(args, spec=spec, recorded=checkpoint.data, device=device)
    classes = inputs.fingerprint(data.class_names)
    method = "ecp_" + "_".join(args.prune) if args.prune else "ec2t"
    method += f"_levels{args.levels}" if args.levels > 3 else ""
    runs = []
    for point in points:
        name = f"{spec.model.replace(':', '-')}_{data.name}_{method}_{point.name}"
        run = quantize_point(
            from_flags(Quantizing, vars(args), point=point),
            RunRequest(
                args.output / name,
                configuration(args, model=spec.model, point=point.name, classes=classes),
                resume=args.resume,
                override=args.resume_override,
                interval=Interval.parse(args.checkpoint_every),
            ),
            checkpoint=checkpoint,
            spec=spec,
            data=data,
            recorded=inputs.describe(data),
            device=device,
            scoring_params=count_parameters(spec, data.image_size),
        )
        if args.plot_ternarization and processes.is_main():
            plot_ternarization(run)
        runs.append(run)
    log = Log(args.output)
    log(results_table(runs))
    with turn(args.output):
        if processes.is_main():
            write_text(results_csv(runs), args.output / "results.csv")
        winner = copy_best(runs, args.output / "Ternary_best_acc.pt")
    if args.plot_pareto and processes.is_main():
        plot_pareto(results(runs), args.plot_pareto)
    if winner:
        log(f"best network: {args.output / 'Ternary_best_acc.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
