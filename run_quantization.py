#!/usr/bin/env python3
"""Stage 2: make a trained network ternary and sparse (EC2T), or sparsify its other layers (ECP).

Examples:
  python -u run_quantization.py --model-dict net.pt --epochs 20 --retrain-epochs 20
  python -u run_quantization.py --model-dict ternary.pt --do-prune --epochs 10 --retrain-epochs 0
"""

# What needs torch is imported in the functions that run after all flags are checked: it takes
# seconds to load, and --help and mistakes must not wait for it.

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data.errors import UserError, require_packages
from model_compound_scaling.command_line import entry, inputs, shared_flags
from model_compound_scaling.command_line import flag_values as kind
from model_compound_scaling.command_line.parser import ON_OFF, SWITCH, Parser, flag
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_compound_scaling.training.recipe import from_flags
from model_quantization.grid import grid_points, results, results_csv, results_table

STAGE = Path(__file__).parent / "model_quantization"
SOURCES, OUTPUT = STAGE / "trained_fp_models", STAGE / "saved_models"


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="run_quantization.py", required="--model-dict FILE", description=__doc__)
    add = parser.section("what is quantized")
    add("--model-dict", None, None, "FILE", "checkpoint to start from: a name in "
        "model_quantization/trained_fp_models, or a path", required=True)
    add("--ternarize", kind.regex, None, "REGEX",
        "ternarize the weights whose name matches (default: the convolutions inside the blocks; of "
        "EfficientNets expand, project and head; of other networks all but the first)")
    add("--do-prune", SWITCH, False, None, "instead of ternarizing, prune the layers of the "
        "families below (none named: SE and fc); already ternary layers stay as they are")
    families = {"se": "squeeze-and-excitation", "fc": "fully connected", "dw": "depthwise"}
    for family, layers in families.items():
        add(f"--ec-pruning-{family}", "append_const", None, None,
            f"prune the {layers} layers; alone, it implies --do-prune", dest="prune", const=family)
    add = parser.section("method")
    add("--method", ("ec2t", "ttq", "nearest"), "ec2t", None,
        "ec2t: entropy-constrained; nearest: to the nearest centroid, the same with gamma 0; ttq: "
        "trained ternary quantization, by a fixed threshold")
    add("--levels", (3, 5, 7, 15), 3, None,
        "values per layer, 0 among them; --ini-c-divrs places the outermost ones")
    # lists that span a grid change no result: the point's own values are in its name
    add("--ttq-threshold", kind.non_negative, [0.05], "T", "for ttq: weights below T x their "
        "layer's largest are zero; a list spans a grid", nargs="+", incidental=True)
    strength = parser.add_argument_group("EC2T: lists span a grid")
    add, goal = partial(flag, strength), partial(flag, strength.add_mutually_exclusive_group())
    add("--ini-c-divrs", kind.non_negative, [0.15, 0.3, 0.5], "S", "first centroids, as a share of "
        "each layer's largest and smallest weight", nargs="+", incidental=True)
    add("--lambda-max-divrs", kind.non_negative, [0.125, 0.15, 0.175], "GAMMA", "strength of the "
        "entropy constraint, as a share of each layer's largest lambda", nargs="+", incidental=True)
    goal("--target-sparsity", kind.percent, None, "P",
        "find gamma instead: so that P percent (+-1) of the quantized weights are zero")
    goal("--target-params", kind.non_negative, None, "N",
        "find gamma instead: so that the network has N (+-2 %) published scoring parameters")
    add("--centroids", int, 0, "K", "if not 0, find the first K centroids, K as --levels, by "
        "k-means that starts from --ini-c-divrs")
    add = parser.section("training (Adam)")
    add("--epochs", kind.natural, 20, "N", "epochs with moving codes")
    add("--retrain-epochs", kind.natural, 15, "N",
        "epochs with frozen codes, from the best ternary epoch on")
    add("--lr", kind.non_negative, 1e-4, "X", "of all but the centroids")
    add("--lr2", kind.non_negative, 1e-5, "X", "of the centroids")
    add("--weight-decay", kind.non_negative, 5e-6, "X", "of the layers that are not quantized")
    add("--eval", ON_OFF, False, None,
        "also measure the accuracy before quantization and before training", incidental=True)
    shared_flags.add_network_flags(parser)
    shared_flags.add_data_flags(parser, training=True, default="the checkpoint's, else CIFAR100")
    shared_flags.add_machine_flags(parser, training=True)
    shared_flags.add_run_flags(parser, output=OUTPUT)
    add = parser.section("plots (need matplotlib)")
    add("--plot-pareto", Path, None, "FILE.png",
        "draw accuracy over zeros of the grid's networks", incidental=True)
    add("--plot-ternarization", kind.boolean, False, "BOOL",
        "draw weights, centroids, entropy and zeros of each layer over the epochs to "
        "ternarization/*.png in each network's folder", nargs="?", const=True, incidental=True)
    return parser
# fmt: on


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
        require_packages("plots need", "matplotlib", fix="pip install matplotlib")


def count_parameters(spec: NetworkSpec, size: int) -> Callable:
    """network -> its published scoring parameters, at the precision of stage 3's defaults."""
    from model_scoring.counting.scoring import score

    # stage 2 imports nothing of stage 3; its script hands the count over
    row, published = table_row(spec.model), "published"
    count = partial(score, shape=(row.channels, size, size), family=row.family, rules=(published,))
    return lambda network: count(network).totals[published].params


def body(args: argparse.Namespace, incidental: frozenset[str]) -> None:
    check(args)
    grid = (args.ini_c_divrs, args.lambda_max_divrs, args.ttq_threshold)
    targets = {"sparsity": args.target_sparsity, "params": args.target_params}
    points = grid_points(args.method, *grid, targets)
    entry.require_single(args.resume, len(points))
    entry.require_names(args)
    device = entry.start(args)

    from model_compound_scaling.checkpoints.atomic_save import write_text
    from model_compound_scaling.machine import Log, processes
    from model_compound_scaling.runs import copy_best, turn
    from model_quantization.plots import plot_pareto, plot_ternarization
    from model_quantization.two_phases import Quantizing, quantize_point

    checkpoint, spec = inputs.open_checkpoint(args, flag="--model-dict", folder=SOURCES)
    if not args.dataset and "dataset" not in checkpoint.data:
        args.dataset = "CIFAR100"
    data = inputs.open_data(args, spec=spec, recorded=checkpoint.data, device=device)
    classes, count = inputs.fingerprint(data.class_names), count_parameters(spec, data.image_size)
    method = "ecp_" + "_".join(args.prune) if args.prune else "ec2t"
    method += f"_levels{args.levels}" if args.levels > 3 else ""
    runs = []
    for point in points:
        name = f"{spec.model.replace(':', '-')}_{data.name}_{method}_{point.name}"
        flags = {"model": spec.model, "point": point.name, "classes": classes}
        settings = from_flags(Quantizing, vars(args), point=point)
        request = entry.run_request(args, incidental, args.output / name, device, **flags)
        run = quantize_point(settings, request, checkpoint, spec, data, device, count)
        if args.plot_ternarization and processes.is_main():
            plot_ternarization(run)
        runs.append(run)
    log, table = Log(args.output), results(runs)
    log(*results_table(table).splitlines())
    with turn(args.output):
        if processes.is_main():
            write_text(results_csv(table), args.output / "results.csv")
        winner = copy_best(runs, args.output / "Ternary_best_acc.pt")
    if args.plot_pareto and processes.is_main():
        plot_pareto(table, args.plot_pareto)
    if winner:
        log(f"best network: {args.output / 'Ternary_best_acc.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = build_parser()
    return entry.run(partial(body, incidental=parser.incidental), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
