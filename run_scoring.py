#!/usr/bin/env python3
"""Stage 3: count what a network costs: parameters, operations, bytes, energy, MicroNet score.

Examples:
  python -u run_scoring.py --t-model net_ternary.pt
  python -u run_scoring.py --t-model net_ternary.pt --dataset CIFAR100 --eval --json score.json
  python -u run_scoring.py --t-model net_ternary.pt --export net.ec2t
  python -u run_scoring.py --t-model net.ec2t --predict photos --top 3
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data import Data
from data.errors import UserError
from model_compound_scaling.checkpoints.manifest import manifest_path
from model_compound_scaling.checkpoints.network_checkpoint import load_network
from model_compound_scaling.command_line import flag_values, inputs
from model_compound_scaling.command_line.entry import run
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.command_line.shared_flags import (
    add_data_flags,
    add_machine_flags,
    add_network_flags,
)
from model_compound_scaling.machine.devices import choose_device
from model_compound_scaling.networks.registry import table_row
from model_compound_scaling.training.evaluation import Evaluation, evaluate
from model_scoring import command_line
from model_scoring.counting import plot, report
from model_scoring.counting.scoring import Score, prune_depthwise, score, ternary_layers, warnings
from model_scoring.counting.settings import Settings
from model_scoring.export import onnx_file
from model_scoring.export.layer_masks import layer_files
from model_scoring.export.output_files import Files, write_all
from model_scoring.export.thin_and_onnx import other_forms
from model_scoring.inference.half_precision import half_precision
from model_scoring.packed_file.format import Packed, read_any

STAGE = Path(__file__).parent / "model_scoring"
SOURCES, SAVED_LAYERS = STAGE / "trained_t_models", STAGE / "saved_layers"
FILE_FLAGS = ("json", "csv", "plot", "thin", "onnx", "export")
NEEDS = {"pt_sparse": "save", "export_precision": "export", "onnx_opset": "onnx", "top": "predict"}
REFERENCES = {"ImageNet": "imagenet", "CIFAR10": "cifar", "CIFAR100": "cifar"}


def add_counting_flags(parser: Parser) -> None:
    group = parser.add_argument_group("counting")
    group.add_argument(
        "--halfprecision",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="16-bit values, activations and multiplications; --eval computes in 16 bit too",
    )
    group.add_argument(
        "--mul-bits",
        type=flag_values.positive,
        metavar="N",
        help="operands of multiplications (default: 16, or 32 with --no-halfprecision)",
    )
    group.add_argument(
        "--add-bits",
        type=flag_values.positive,
        default=32,
        metavar="N",
        help="operands of additions outside the tree adder",
    )
    group.add_argument(
        "--tree-adder",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="sum ternary layers with a tree of adders, as narrow as each level allows",
    )
    group.add_argument(
        "--formats",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store ternary layers in the cheapest of all formats; --no-formats leaves the bit "
        "mask and ternary scoring scheme 1",
    )
    group.add_argument(
        "--prune-threshold",
        type=flag_values.non_negative,
        default=1.0,
        metavar="T",
        help="first zero depthwise weights below T x their layer's largest; 1 = off",
    )
    group.add_argument(
        "--rules",
        choices=report.RULE_SETS,
        default="published",
        help="rule set whose layers are listed: as in the thesis' tables, or the challenge's "
        "written rules; the summary has both",
    )


def add_output_flags(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    for name, what in (
        ("json", "everything that is printed, in units"),
        ("csv", "the layers"),
        ("plot", "chart of ternary and deleted weights per layer; needs matplotlib"),
    ):
        suffix = "png" if name == "plot" else name
        group.add_argument(f"--{name}", type=Path, metavar=f"FILE.{suffix}", help=what)
    group.add_argument(
        "--save",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write each ternary layer's two bit masks, 8 weights a byte, and centroids",
    )
    group.add_argument(
        "--pt-sparse",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with --save: as sparse COO tensors instead",
    )
    group.add_argument(
        "--output",
        "--slurm-save",
        type=Path,
        default=SAVED_LAYERS,
        metavar="DIR",
        help="folder of --save",
    )


def add_network_file_flags(parser: Parser) -> None:
    group = parser.add_argument_group("the network in other forms")
    group.add_argument(
        "--thin",
        type=Path,
        metavar="FILE.pt",
        help="write the network without its dead channels: a checkpoint for all stages",
    )
    group.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE.onnx",
        help="write the network (with --thin, the thin one) for other runtimes, ternary layers "
        "as 2-bit codes; needs requirements-export.txt",
    )
    group.add_argument(
        "--onnx-opset",
        type=int,
        choices=onnx_file.OPSETS,
        metavar="N",
        help="13 to 25 (default); codes take 2 bits in 25, 4 bits from 21 on, 8 bits below",
    )


def build_parser() -> Parser:
    parser = Parser(prog="run_scoring.py", required="--t-model FILE", description=__doc__)
    what = parser.add_argument_group("what is scored")
    what.add_argument(
        "--t-model",
        required=True,
        metavar="FILE",
        help="checkpoint or packed file: a name in model_scoring/trained_t_models, or a path",
    )
    what.add_argument(
        "--eval",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure top-1 and top-5 accuracy on the validation images",
    )
    add_counting_flags(parser)
    add_output_flags(parser)
    add_network_file_flags(parser)
    command_line.add_flags(parser)
    add_network_flags(parser)
    add_data_flags(parser, training=False, default="what the checkpoint was trained on")
    add_machine_flags(parser, training=False)
    return parser


def settings(args: argparse.Namespace) -> Settings:
    """Widths and rules from the flags."""
    bits = 16 if args.halfprecision else 32
    return Settings(bits, args.mul_bits or bits, args.add_bits, args.tree_adder, args.formats)


def measure(network: nn.Module, data: Data, *, device: torch.device, half: bool) -> Evaluation:
    """Accuracy on the validation images, in 16 bit if asked for."""
    network = network.to(device)
    how = "float32"
    if half:
        image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
        network, how = (found := half_precision(network, image)).network, found.description
    result = evaluate(network, data.val.epoch(0), total=len(data.val))
    print(
        f"evaluated on {data.val.samples:,} images in {how}: "
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}"
    )
    return result


def outputs(args: argparse.Namespace, result: Score, content: dict, packed: Packed | None) -> Files:
    """Every file the flags ask for, complete before the first is written."""
    files: Files = {}
    if packed:
        files[args.export] = packed.content
    if args.json:
        files[args.json] = (json.dumps(content, indent=1) + "\n").encode()
    if args.csv:
        files[args.csv] = report.to_csv(result, args.rules).encode()
    if args.plot:
        title = f"{content['model']}, {100 * content['zeros']:.1f} % zeros"
        files[args.plot] = plot.plot(result, args.rules, title=title)
    if args.save:
        files |= layer_files(ternary_layers(result), args.output, sparse=args.pt_sparse)
    return files


def check(args: argparse.Namespace) -> list[Path]:
    """The output files that flags name. UserError for flags that contradict each other."""
    if args.plot:
        plot.require_matplotlib()
    if args.onnx:
        onnx_file.require_packages()
    for flag, needed in NEEDS.items():
        if getattr(args, flag) not in (None, False) and not getattr(args, needed):
            given = f"--{flag.replace('_', '-')}"
            raise UserError(f"{given} takes effect with --{needed}: add it")
    paths = [path for flag in FILE_FLAGS if (path := getattr(args, flag))]
    paths += [manifest_path(args.thin)] if args.thin else []
    if folder := next((path for path in paths if path.is_dir()), None):
        raise UserError(f"{folder} is a folder: name a file in it")
    named = [path.resolve() for path in paths]
    if len(set(named)) < len(named):
        raise UserError(f"{', '.join(f'--{flag}' for flag in FILE_FLAGS)} need different files")
    return named


def body(args: argparse.Namespace) -> None:
    named = check(args)
    torch.manual_seed(args.seed)
    device = choose_device(args.cuda)
    checkpoint, spec = inputs.open_checkpoint(
        args,
        name=args.t_model,
        folder=SOURCES,
        flag="--t-model",
        read=partial(read_any, trusted=args.model),
    )
    if checkpoint.path.resolve() in named:
        raise UserError(f"{checkpoint.path} is the checkpoint itself: name another output file")
    row, known = table_row(spec.model), inputs.known_input(args, spec, checkpoint.data)
    size = known["image_size"]
    network = load_network(checkpoint, spec).eval()
    pruned = prune_depthwise(network, args.prune_threshold)
    data, predictions = None, ()
    if args.predict:
        predictions = command_line.predict(args, network, spec=spec, data=known, device=device)
    if args.eval:
        data = inputs.open_data(
            args, spec=spec, recorded=checkpoint.data, device=device, splits=("val",)
        )
        known = inputs.describe(data)
    packed = command_line.export(args, network, spec, known)
    result = score(
        network,
        (row.channels, size, size),
        family=row.family,
        settings=settings(args),
        reference=REFERENCES.get(known.get("dataset")),
    )
    print(f"{spec.model} from {checkpoint.path}, {row.channels}x{size}x{size} input")
    if args.prune_threshold != 1:
        print(f"pruned {len(pruned)} depthwise layers below {args.prune_threshold:g} x largest")
    print("\n".join(report.table(result, args.rules)))
    print()
    print("\n".join(report.summary(result, packed and len(packed.content))))
    for line in warnings(result):
        print(f"warning: {line}", file=sys.stderr)
    top1 = measure(network, data, device=device, half=args.halfprecision).top1 if data else None
    content = report.to_dict(
        result,
        model=spec.model,
        checkpoint=str(checkpoint.path),
        image_size=size,
        rules=args.rules,
        top1=top1,
    )
    files = outputs(args, result, content, packed)
    forms, lines = other_forms(
        network,
        spec,
        known,
        result,
        thin_path=args.thin,
        onnx_path=args.onnx,
        opset=args.onnx_opset or onnx_file.OPSETS[-1],
    )
    for line in lines:
        print(line)
    write_all(files := files | forms)
    for path in files:
        print(f"wrote {path}")
    for line in predictions:
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Score a checkpoint; returns the exit code."""
    return run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
