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
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, require_packages
from model_compound_scaling.command_line import entry, inputs, shared_flags
from model_compound_scaling.command_line import flag_values as kind
from model_compound_scaling.command_line.parser import ON_OFF, SWITCH, Parser, flag
from model_compound_scaling.networks.quantizers import BITS
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_compound_scaling.training.recipe import AMP, SCHEDULES, Recipe, from_flags
from model_quantization.grid import OBJECTIVES, Point, grid_points
from model_quantization.quality_search import search, warm_epochs
from model_scoring.counting.settings import REFERENCE_OF

if TYPE_CHECKING:
    import torch
    from torch import nn

    from data import Data
    from model_compound_scaling.checkpoints import Checkpoint
    from model_compound_scaling.runs import Configuration, History
    from model_compound_scaling.training import Distillation
    from model_quantization.gamma_search import Sizes, Total

STRENGTHS = [0.125, 0.15, 0.175]
SEARCH = {"objective": "score", "trials": 6, "trial_epochs": None}  # with --target-accuracy
TEMPERATURE = 4.0
OTHERS = 8  # bits of activations
RECIPES = {"thesis": {}, "strong": {"lr": 1e-3, "lr2": 1e-4, "schedule": "cosine"}}
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
        "EfficientNets expand, project and head; of LeNets all but the last layer; of other "
        "networks all but the first)")
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
    add("--act-bits", BITS, None, "B", "activations, too: 2 to 8 bits for the inputs of quantized "
        "layers, times a learned step; a list spans a grid", nargs="+", incidental=True)
    add("--act-bits-other", BITS, None, "B", "for those of the other layers, the image excepted "
        f"(default: {OTHERS})")
    # lists that span a grid change no result: the point's own values are in its name
    add("--ttq-threshold", kind.non_negative, [0.05], "T", "for ttq: weights below T x their "
        "layer's largest are zero; a list spans a grid", nargs="+", incidental=True)
    strength = parser.add_argument_group("EC2T: lists span a grid")
    add, goal = partial(flag, strength), partial(flag, strength.add_mutually_exclusive_group())
    add("--ini-c-divrs", kind.non_negative, [0.15, 0.3, 0.5], "S", "first centroids, as a share of "
        "each layer's largest and smallest weight", nargs="+", incidental=True)
    add("--lambda-max-divrs", kind.non_negative, None, "GAMMA", "strength of the entropy "
        "constraint, as a share of each layer's largest lambda (default: 0.125 0.15 0.175; with "
        "--target-accuracy 0.15, and larger ones)", nargs="+", incidental=True)
    goal("--target-sparsity", kind.percent, None, "P",
        "find gamma instead: so that P percent (+-1) of the quantized weights are zero")
    goal("--target-params", kind.non_negative, None, "N",
        "find gamma instead: so that the network has N (+-2 %) published scoring parameters")
    goal("--target-bytes", kind.positive, None, "N",
        "find gamma instead: so that the packed file (--export of stage 3) has N (+-2 %) bytes")
    goal("--target-accuracy", kind.percent, None, "A", "find the smallest network with A percent "
        "top-1: from each first centroids gamma is raised until one misses it, then bisected; each "
        "network but the first starts from the strongest that has A", incidental=True)
    add("--objective", tuple(OBJECTIVES), None, None, "what smallest means: parameters, operations,"
        " score (published rules; the default) or bytes of the packed file", incidental=True)
    add("--trials", kind.positive, None, "N", "with --target-accuracy: networks to make, from each "
        "first centroids (default: 6)", incidental=True)
    add("--trial-epochs", kind.positive, None, "N", "epochs of a network that starts from another, "
        "with moving and then with frozen codes (default: a third of those of the first)")
    add("--gamma-schedule", ("constant", "linear"), "constant", None, "linear: gamma rises from 0 "
        "in the first half of the epochs with moving codes, of networks that start from the given "
        "one")
    add("--centroids", int, 0, "K", "if not 0, find the first K centroids, K as --levels, by "
        "k-means that starts from --ini-c-divrs")
    add = parser.section("training (Adam)")
    parser.presets = RECIPES
    strong = " ".join(f"--{name} {value}" for name, value in RECIPES["strong"].items())
    add("--recipe", tuple(RECIPES), "thesis", None, f"strong: {strong}, where not given; some "
        "points more accurate after few epochs (docs/benchmarks.md)", incidental=True)
    add("--epochs", kind.natural, 20, "N",
        "epochs with moving codes; 0: a ternary network keeps those it has")
    add("--retrain-epochs", kind.natural, 15, "N",
        "epochs with frozen codes, from the best ternary epoch on")
    add("--lr", kind.non_negative, 1e-4, "X", "of all but the centroids")
    add("--lr2", kind.non_negative, 1e-5, "X", "of the centroids")
    add("--weight-decay", kind.non_negative, 5e-6, "X", "of the layers that are not quantized")
    shared_flags.add_recipe_flags(add, schedules=SCHEDULES, amp=AMP, schedule="constant")
    not_ternary = "an average of ternary networks is not ternary"
    add("--ema", kind.refused(not_ternary), None, "DECAY", f"not here: {not_ternary}")
    add("--eval", ON_OFF, False, None,
        "also measure the accuracy before quantization and before training", incidental=True)
    add = parser.section("distillation")
    add("--teacher", None, None, "self|FILE", "learn from this network's probabilities, too: the "
        "one that is quantized, as it is now, or a checkpoint; needs --distill")
    add("--distill", kind.share, None, "ALPHA",
        "loss = (1 - ALPHA) cross-entropy + ALPHA T^2 Kullback-Leibler divergence")
    add("--temperature", kind.multiplier, None, "T",
        f"divides the logits of both networks (default: {TEMPERATURE:g})")
    add("--distill-direction", ("forward", "reverse"), None, None, "divergence from the teacher's "
        "to the network's probabilities (default), or the reverse")
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
    goals = (args.target_sparsity, args.target_params, args.target_bytes, args.target_accuracy)
    has_goal = any(goal is not None for goal in goals)
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
    for name, default in SEARCH.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.target_accuracy is None:
            flag_name = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag_name} takes effect with --target-accuracy: add it")
    if args.act_bits_other and not args.act_bits:
        raise UserError("--act-bits-other takes effect with --act-bits: add it")
    args.act_bits_other = args.act_bits_other or (OTHERS if args.act_bits else None)
    if args.teacher and args.distill is None:
        raise UserError("--teacher needs --distill ALPHA, the share of the loss that it decides")
    for name in () if args.teacher else ("distill", "temperature", "distill_direction"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} takes effect with --teacher: add it")
    if args.plot_ternarization or args.plot_pareto:
        require_packages("plots need", "matplotlib", fix="pip install matplotlib")


def sizes(args: argparse.Namespace, spec: NetworkSpec, data: "Data") -> "Sizes":
    """How networks are measured: as stage 3 does by default."""
    from model_compound_scaling.networks.quantizers import describe
    from model_quantization.gamma_search import Sizes
    from model_scoring.counting.scoring import score
    from model_scoring.packed_file.format import pack

    # stage 2 imports nothing of stage 3; its script hands the counts over
    row, reference = table_row(spec.model), REFERENCE_OF.get(data.name)
    shape = (row.channels, data.image_size, data.image_size)
    options = {"family": row.family, "reference": reference, "rules": ("published",)}
    known = inputs.describe(data)

    def file_size(network: "nn.Module") -> int:
        state, described = network.state_dict(), replace(spec, activations=describe(network))
        return len(pack({k: v.cpu() for k, v in state.items()}, described, known).content)

    def total(network: "nn.Module") -> "Total":
        return score(network, shape, **options).totals["published"]

    needed = (args.target_bytes, args.target_accuracy) != (None, None)
    return Sizes(total, file_size if needed else None)


def distilled(
    args: argparse.Namespace,
    checkpoint: "Checkpoint",
    spec: NetworkSpec,
    data: "Data",
    device: "torch.device",
) -> "tuple[Distillation | None, str | None]":
    """What the flags say of a teacher; what the configuration says of which one it is."""
    from model_compound_scaling.checkpoints.network_checkpoint import find_file
    from model_compound_scaling.training import Distillation
    from model_quantization.teacher import fingerprint, make_teacher, open_teacher

    if args.teacher is None:
        return None, None
    where = data, device, from_flags(Recipe, vars(args))
    if args.teacher == "self":
        teacher, name = make_teacher(checkpoint, spec, *where), "self"
    else:
        path = find_file(args.teacher, folder=SOURCES, flag="--teacher")
        teacher, name = open_teacher(path, *where), fingerprint(path)
    temperature, reverse = args.temperature or TEMPERATURE, args.distill_direction == "reverse"
    return Distillation(teacher, args.distill, temperature, reverse), name


def quantizer(
    args: argparse.Namespace,
    configuration: "Callable[[dict], Configuration]",
    device: "torch.device",
    checkpoint: "Checkpoint",
    spec: NetworkSpec,
    data: "Data",
) -> "Callable[[Point], History]":
    """What makes a run, in a folder of its own, of a point."""
    from model_compound_scaling.checkpoints import load_network, read_checkpoint
    from model_compound_scaling.machine import processes
    from model_quantization.plots import plot_ternarization
    from model_quantization.two_phases import Quantizing, quantize_point

    recipe = from_flags(Recipe, vars(args))
    distillation, teacher = distilled(args, checkpoint, spec, data, device)
    measure, classes = sizes(args, spec, data), inputs.fingerprint(data.class_names)
    method = "ecp_" + "_".join(args.prune) if args.prune else "ec2t"
    method += f"_levels{args.levels}" if args.levels > 3 else ""
    kind_of_run = f"{spec.model.replace(':', '-')}_{data.name}_{method}"

    def quantize(point: Point) -> "History":
        prefix = kind_of_run + (f"_act{point.act_bits}" if point.act_bits else "")
        flags = {"model": spec.model, "point": point.name, "classes": classes, "teacher": teacher}
        settings = from_flags(Quantizing, vars(args), point=point, start=None, recipe=recipe,
                              distillation=distillation)  # fmt: skip
        if point.start:
            moving, frozen = warm_epochs(args.trial_epochs, args.epochs, args.retrain_epochs)
            epochs = {"epochs": moving, "retrain_epochs": frozen}
            flags |= {"start": point.start, **epochs}
            start = args.output / f"{prefix}_{point.start}" / "last.pt"
            settings = replace(settings, start=start, **epochs)
        folder = args.output / f"{prefix}_{point.name}"
        request = entry.run_request(args, configuration, folder, device, **flags)
        run = quantize_point(settings, request, checkpoint, spec, data, device, measure)
        if measure.packed and "packed_bytes" not in run.best:  # of a grid, where nobody asked
            best = read_checkpoint(run.folder / "best.pt")
            run.best.update(measure.figures(load_network(best, best.network)))
        if args.plot_ternarization and processes.is_main():
            plot_ternarization(run)
        return run

    return quantize


def body(args: argparse.Namespace, configuration: "Callable[[dict], Configuration]") -> None:
    check(args)
    strengths = args.lambda_max_divrs or (STRENGTHS if args.target_accuracy is None else [0.15])
    grid = (args.ini_c_divrs, strengths, args.ttq_threshold)
    targets = {name: getattr(args, f"target_{name}") for name in ("sparsity", "params", "bytes")}
    points, widths = grid_points(args.method, *grid, targets), args.act_bits or [None]
    points = [replace(point, act_bits=bits) for bits in widths for point in points]
    entry.require_single(args.resume, len(points) if args.target_accuracy is None else args.trials)
    entry.require_names(args)
    device = entry.start(args)
    checkpoint, spec = inputs.open_checkpoint(args, flag="--model-dict", folder=SOURCES)
    if not args.dataset and "dataset" not in checkpoint.data:
        args.dataset = "CIFAR100"
    data = inputs.open_data(args, spec=spec, recorded=checkpoint.data, device=device)
    from model_quantization.conclusion import conclude, require_accuracy

    quantize = quantizer(args, configuration, device, checkpoint, spec, data)
    if args.target_accuracy is None:
        runs = [quantize(point) for point in points]
    else:
        require_accuracy(checkpoint, spec, data, device, args.target_accuracy)
        options = {"accuracy": args.target_accuracy, "trials": args.trials}
        runs = []
        for bits, scale in product(widths, args.ini_c_divrs):
            run = partial(lambda point, bits: quantize(replace(point, act_bits=bits)), bits=bits)
            runs += search(scale, strengths, run=run, **options)
    rest = {"accuracy": args.target_accuracy, "objective": args.objective}
    conclude(runs, args.output, pareto=args.plot_pareto, **rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = build_parser()
    return entry.run(partial(body, configuration=parser.configuration), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
