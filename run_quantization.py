#!/usr/bin/env python3
"""Stage 2: make a trained network ternary and sparse (EC2T), or sparsify its other layers (ECP).

Examples:
  python -u run_quantization.py --model-dict net.pt --epochs 20 --retrain-epochs 20
  python -u run_quantization.py --model-dict ternary.pt --do-prune --epochs 10 --retrain-epochs 0
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_compound_scaling import cli
from model_compound_scaling.runs import Log, copy_best
from model_quantization.plots import plot_ternarization, require_matplotlib
from model_quantization.schedule import grid_points, quantize_point, results_table

STAGE = Path(__file__).parent / "model_quantization"
SOURCES, OUTPUT = STAGE / "trained_fp_models", STAGE / "saved_models"


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run_quantization.py", required="--model-dict FILE", description=__doc__
    )
    what = parser.add_argument_group("what is quantized")
    what.add_argument(
        "--model-dict",
        required=True,
        metavar="FILE",
        help="checkpoint to start from: a name in model_quantization/trained_fp_models, or a path",
    )
    what.add_argument(
        "--ternarize",
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
            help=f"entropy-constrained pruning of the {layers} layers",
        )
    strength = parser.add_argument_group("EC2T: lists span a grid")
    strength.add_argument(
        "--ini-c-divrs",
        type=cli.non_negative,
        nargs="+",
        default=[0.15, 0.3, 0.5],
        metavar="S",
        help="first centroids, as a share of each layer's largest and smallest weight",
    )
    strength.add_argument(
        "--lambda-max-divrs",
        type=cli.non_negative,
        nargs="+",
        default=[0.125, 0.15, 0.175],
        metavar="GAMMA",
        help="strength of the entropy constraint, as a share of each layer's largest lambda",
    )
    strength.add_argument(
        "--centroids",
        type=int,
        choices=(0, 3),
        default=0,
        help="3: find the first centroids by k-means, starting from --ini-c-divrs",
    )
    training = parser.add_argument_group("training (Adam)")
    training.add_argument(
        "--epochs", type=cli.natural, default=20, metavar="N", help="epochs with moving codes"
    )
    training.add_argument(
        "--retrain-epochs",
        type=cli.natural,
        default=15,
        metavar="N",
        help="epochs with frozen codes, from the best ternary epoch on",
    )
    training.add_argument(
        "--lr", type=cli.non_negative, default=1e-4, metavar="X", help="of all but the centroids"
    )
    training.add_argument(
        "--lr2", type=cli.non_negative, default=1e-5, metavar="X", help="of the centroids"
    )
    training.add_argument(
        "--weight-decay",
        type=cli.non_negative,
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
    cli.add_network_flags(parser)
    cli.add_data_flags(parser, training=True, default="the checkpoint's, else CIFAR100")
    cli.add_machine_flags(parser)
    cli.add_run_flags(parser, output=OUTPUT)
    group = parser.add_argument_group("plots")
    group.add_argument(
        "--plot-ternarization",
        type=cli.boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="draw weights, centroids, entropy and zeros of each layer over the epochs to "
        "ternarization/*.png in each network's folder (needs matplotlib)",
    )
    return parser


def body(args: argparse.Namespace) -> None:
    if args.do_prune and not args.prune:
        args.prune = ["se", "fc"]
    if args.plot_ternarization:
        require_matplotlib()
    points = grid_points(args.ini_c_divrs, args.lambda_max_divrs)
    cli.require_single(args.resume, points)
    device = cli.choose_device(args.cuda)
    checkpoint, spec = cli.open_checkpoint(
        args, name=args.model_dict, folder=SOURCES, flag="--model-dict"
    )
    if not args.dataset and "dataset" not in checkpoint.data:
        args.dataset = "CIFAR100"
    data = cli.open_data(args, spec=spec, recorded=checkpoint.data, device=device)
    method = "ecp_" + "_".join(args.prune) if args.prune else "ec2t"
    runs = []
    for point in points:
        run = quantize_point(
            point,
            checkpoint=checkpoint,
            spec=spec,
            folder=args.output
            / f"{spec.model.replace(':', '-')}_{data.name}_{method}_{point.name}",
            config=cli.config(args, model=spec.model, point=point.name),
            resume=args.resume,
            data=data,
            recorded=cli.describe(data),
            device=device,
        )
        if args.plot_ternarization:
            plot_ternarization(run)
        runs.append(run)
    log = Log(args.output)
    log(results_table(runs))
    if copy_best(runs, args.output / "Ternary_best_acc.pt"):
        log(f"best network: {args.output / 'Ternary_best_acc.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return cli.run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
