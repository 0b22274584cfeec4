#!/usr/bin/env python3
"""Stage 3: count what a network costs: parameters, operations, bytes, energy, MicroNet score.

Examples:
  python -u run_scoring.py --t-model net_ternary.pt
  python -u run_scoring.py --t-model net_ternary.pt --dataset CIFAR100 --eval --json score.json
  python -u run_scoring.py --t-model net_ternary.pt --export net.ec2t
  python -u run_scoring.py --t-model net.ec2t --predict photos --top 3
"""

# What needs torch is imported in the functions that run after all flags are checked: it takes
# seconds to load, and --help and mistakes must not wait for it.

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, printable, require_packages
from model_compound_scaling.command_line import entry, inputs, shared_flags
from model_compound_scaling.command_line import flag_values as kind
from model_compound_scaling.command_line.parser import ON_OFF, Parser
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.counting import layer_widths
from model_scoring.counting.settings import REFERENCE_OF, RULE_SETS, Settings
from model_scoring.export import onnx_code_types
from model_scoring.export.c_source.names import compiler, header_path
from model_scoring.inference import TOP

if TYPE_CHECKING:
    import torch
    from torch import nn

    from data import Data
    from model_compound_scaling.checkpoints import Checkpoint
    from model_scoring.counting import Score
    from model_scoring.packed_file import Packed
    from model_scoring.report_page import Trial

STAGE = Path(__file__).parent / "model_scoring"
SOURCES, SAVED_LAYERS = STAGE / "trained_t_models", STAGE / "saved_layers"
FILE_FLAGS = ("json", "csv", "plot", "thin", "onnx", "c_source", "export",
              "report")  # fmt: skip
NEEDS = {"pt_sparse": "save", "export_precision": "export", "onnx_opset": "onnx", "top": "predict",
         "question": "report", "runs": "report"}  # fmt: skip
FORMS = {"export": "packed file", "thin": "thin network", "onnx": "ONNX", "c_source": "C source"}


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="run_scoring.py", required="--t-model FILE", description=__doc__)
    add = parser.section("what is scored")
    add("--t-model", None, None, "FILE", "checkpoint or packed file: a name in "
        "model_scoring/trained_t_models, or a path", required=True)
    add("--eval", ON_OFF, False, None, "measure top-1 and top-5 accuracy on the validation images")
    add = parser.section("counting")
    add("--halfprecision", ON_OFF, True, None,
        "16-bit values, activations and multiplications; --eval computes in 16 bit too, but with "
        "activations of few bits")
    add("--mul-bits", kind.positive, None, "N",
        "operands of multiplications (default: 16, or 32 with --no-halfprecision)")
    add("--add-bits", kind.positive, 32, "N", "operands of additions outside the tree adder")
    add("--tree-adder", ON_OFF, True, None,
        "sum ternary layers with a tree of adders, as narrow as each level allows")
    layer_widths.add_flags(add)
    add("--formats", ON_OFF, True, None, "store ternary layers in the cheapest of all formats; "
        "--no-formats leaves the bit mask and ternary scoring scheme 1")
    add("--prune-threshold", kind.non_negative, 1.0, "T",
        "first zero depthwise weights below T x their layer's largest; 1 = off")
    add("--rules", RULE_SETS, "published", None, "rule set whose layers are listed: as in the "
        "thesis' tables, or the challenge's written rules; the summary has both")
    add = parser.section("output")
    add("--json", Path, None, "FILE.json", "everything that is printed, in units")
    add("--csv", Path, None, "FILE.csv", "the layers")
    add("--plot", Path, None, "FILE.png",
        "chart of ternary and deleted weights per layer; needs matplotlib")
    add("--save", ON_OFF, False, None,
        "write each ternary layer's two bit masks, 8 weights a byte, and centroids")
    add("--pt-sparse", ON_OFF, False, None, "with --save: as sparse COO tensors instead")
    add("--output --slurm-save", Path, SAVED_LAYERS, "DIR", "folder of --save")
    add = parser.section("a page for people")
    add("--report", Path, None, "FILE.html", "everything in one page that needs nothing else; "
        "needs requirements-report.txt")
    add("--question", None, None, "TEXT", "its headline (default: network and data set)")
    add("--runs", Path, None, "DIR", "--output folders of stages 1 and 2, whose networks it "
        "compares", nargs="+")
    add = parser.section("the network in other forms")
    add("--thin", Path, None, "FILE.pt",
        "write the network without its dead channels: a checkpoint for all stages")
    add("--onnx", Path, None, "FILE.onnx", "write the network (with --thin, the thin one) for "
        "other runtimes, ternary layers as 2-bit codes; needs requirements-export.txt")
    add("--onnx-opset", onnx_code_types.OPSETS, None, "N",
        "13 to 25 (default); codes take 2 bits in 25, 4 bits from 21 on, 8 bits below")
    add("--c-source", Path, None, "FILE.c", "write the thin network as C that needs nothing else, "
        "and FILE.h; compiled and compared with PyTorch where there is a compiler (cc, or CC)")
    add("--latency", ON_OFF, False, None,
        "milliseconds per image of PyTorch, onnxruntime (if installed) and that C, in turn")
    add = parser.section("packed files and predictions")
    add("--export", Path, None, "FILE.ec2t",
        "write the whole network, entropy-coded, in one file that --t-model reads")
    add("--export-precision", ("fp16", "fp32"), None, None, "of tensors that are not ternary; fp32 "
        "keeps every bit of them. Ternary layers and their values are always exact (default: fp16)")
    add("--predict", Path, None, "IMAGE_OR_FOLDER",
        "print the most probable classes of an image, or of all in a folder")
    add("--top", kind.positive, None, "K",
        f"classes that --predict prints (default: {TOP}, or all of fewer)")
    shared_flags.add_network_flags(parser)
    images = "what the checkpoint was trained on"
    shared_flags.add_data_flags(parser, training=False, default=images)
    shared_flags.add_machine_flags(parser, training=False)
    return parser
# fmt: on


def check(args: argparse.Namespace) -> list[Path]:
    """The output files that flags name. UserError for flags that contradict each other."""
    fixes = {"plot": ("install it with `pip install matplotlib`", "matplotlib"),
             "onnx": ("pip install -r requirements-export.txt", *onnx_code_types.PACKAGES),
             "report": ("pip install -r requirements-report.txt", "matplotlib")}  # fmt: skip
    for name, (fix, *packages) in fixes.items():
        if getattr(args, name):
            require_packages(f"--{name} needs", *packages, fix=fix)
    for name, needed in NEEDS.items():
        if getattr(args, name) not in (None, False) and not getattr(args, needed):
            raise UserError(f"--{name.replace('_', '-')} takes effect with --{needed}: add it")
    if args.latency:
        compiler()  # which there must be: better to know now
    named = {name: path for name in FILE_FLAGS if (path := getattr(args, name))}
    named = {f"--{name.replace('_', '-')}": path for name, path in named.items()}
    if args.c_source:
        named["the header of --c-source"] = header_path(args.c_source)
    return kind.different_files(named)


def settings(args: argparse.Namespace) -> Settings:
    """Widths and rules from the flags."""
    bits = 16 if args.halfprecision else 32
    return Settings(bits, args.mul_bits or bits, args.add_bits, args.tree_adder, args.formats,
                    *layer_widths.chosen(args.accumulators, args.widths))  # fmt: skip


def measure(
    network: "nn.Module", data: "Data", *, device: "torch.device", half: bool
) -> tuple[float, str]:
    """Top-1 accuracy on the validation images in percent, in 16 bit if asked for; on which images,
    in words."""
    import torch

    from model_compound_scaling.training.evaluation import evaluate
    from model_scoring.inference.half_precision import half_precision

    network, how = network.to(device), "float32"
    if half:
        image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
        network, how = half_precision(network, image)
    result = evaluate(network, data.val.epoch(0), classes=data.classes, total=len(data.val))
    print(
        f"evaluated on {data.val.samples:,} images in {how}: "
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}"
    )
    return result.top1, f"{data.val.samples:,} validation images of {data.name}, in {how}"


def packed_network(network: "nn.Module", spec: NetworkSpec, known: dict, *, half: bool) -> "Packed":
    """The network in a packed file. `known`: of its images."""
    from model_scoring.packed_file.format import pack

    packed = pack(network.state_dict(), spec, known, half=half)
    if packed.wide:
        named = ", ".join(packed.wide[:3]) + (", ..." if len(packed.wide) > 3 else "")
        print(f"warning: kept in 32 bit, beyond the range of fp16: {named}", file=sys.stderr)
    return packed


def outputs(
    args: argparse.Namespace, result: "Score", content: dict, packed: "Packed | None"
) -> dict[Path, bytes]:
    """The files that the flags ask for, but for the network's other forms."""
    from model_scoring.counting import plot, report
    from model_scoring.counting.scoring import ternary_layers
    from model_scoring.export import layer_files

    files = {}
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


def read_runs(args: argparse.Namespace) -> "list[Trial]":
    """What was tried in the folders that --runs names."""
    from model_scoring.report_page import published_parameters, read_trials

    return read_trials(args.runs or (), partial(published_parameters, trusted=args.model))


def report_page(
    args: argparse.Namespace,
    result: "Score",
    checkpoint: "Checkpoint",
    content: dict,
    measured: tuple[float | None, str],
    files: dict[Path, bytes],
    trials: "Sequence[Trial]",
) -> bytes:
    """What --report writes: the page about a score and the trials before it."""
    from model_scoring.report_page import Asked, gather, render

    forms = {form: path for name, form in FORMS.items() if (path := getattr(args, name))}
    other = bool(args.eval or args.dataset or args.image_size or args.normalize)
    pruned = args.prune_threshold != 1
    asked = Asked(args.question, args.dataset, other, pruned, forms, args.seed)
    return render(gather(asked, result, checkpoint, content, measured, files), trials)


def show(result: "Score", rules: str, packed: "Packed | None") -> None:
    """The layers, the summary and what is to be doubted of them."""
    from model_scoring.counting import report
    from model_scoring.counting.scoring import warnings

    summary = report.summary(result, packed and len(packed.content))
    print("\n".join([*report.table(result, rules), "", *summary]))
    for line in warnings(result):
        print(f"warning: {line}", file=sys.stderr)


def open_network(
    args: argparse.Namespace, written: list[Path]
) -> "tuple[Checkpoint, NetworkSpec, nn.Module]":
    """What --t-model names; UserError if it is one of the files to be written."""
    from model_compound_scaling.checkpoints import load_network
    from model_scoring.packed_file import read_any

    read = partial(read_any, trusted=args.model)
    checkpoint, spec = inputs.open_checkpoint(args, flag="--t-model", folder=SOURCES, read=read)
    if checkpoint.path.resolve() in written:
        raise UserError(f"{checkpoint.path} is the checkpoint itself: name another output file")
    return checkpoint, spec, load_network(checkpoint, spec).eval()


def body(args: argparse.Namespace) -> None:
    written, widths = check(args), settings(args)
    entry.require_names(args)

    import torch

    from model_compound_scaling.machine import choose_device
    from model_compound_scaling.runs.environment import environment
    from model_scoring.counting import score, to_dict
    from model_scoring.counting.scoring import prune_depthwise
    from model_scoring.export import Wanted, other_forms, write_all
    from model_scoring.report_page import recorded_figures

    trials = read_runs(args)
    torch.manual_seed(args.seed)
    device = choose_device(args.cuda)
    checkpoint, spec, network = open_network(args, written)
    row, known = table_row(spec.model), inputs.known_input(args, spec, checkpoint.data)
    size, where = known["image_size"], {"spec": spec, "device": device}
    pruned = prune_depthwise(network, args.prune_threshold)
    data, packed, predictions = None, None, ()
    if args.predict:
        from model_scoring.inference import predict

        inputs.require_classes(args, spec, checkpoint.data)
        predictions = predict(network, args.predict, data=known, top=args.top, **where)
    if args.eval:
        data = inputs.open_data(args, recorded=checkpoint.data, splits=("val",), **where)
        known = inputs.describe(data)
    if args.export:
        packed = packed_network(network, spec, known, half=args.export_precision != "fp32")
    shape, reference = (row.channels, size, size), REFERENCE_OF.get(known.get("dataset"))
    result = score(network, shape, family=row.family, settings=widths, reference=reference)
    source = printable(checkpoint.path)
    print(f"{spec.model} from {source}, {row.channels}x{size}x{size} input")
    if args.prune_threshold != 1:
        print(f"pruned {len(pruned)} depthwise layers below {args.prune_threshold:g} x largest")
    show(result, args.rules, packed)
    half = args.halfprecision
    measured = measure(network, data, device=device, half=half) if data else (None, "")
    facts = {"model": spec.model, "checkpoint": str(checkpoint.path), "image_size": size}
    content = to_dict(result, **facts, rules=args.rules, top1=measured[0])
    content["environment"] = environment(device)
    opset = args.onnx_opset or onnx_code_types.OPSETS[-1]
    wanted = Wanted(args.thin, args.onnx, opset, args.c_source, args.latency)
    same = not (data or args.dataset or args.prune_threshold != 1)  # as in the recorded figures
    top1 = recorded_figures(checkpoint).get("val_top1") if same else measured[0]
    forms = other_forms(network, spec, known, result, wanted, top1=top1)
    for line in forms.lines:
        print(line)
    content |= forms.content
    files = outputs(args, result, content, packed) | forms.files
    if args.report:
        known = (checkpoint, content, measured, files, trials)
        files[args.report] = report_page(args, result, *known)
    write_all(files)
    for path in files:
        print(f"wrote {printable(path)}")
    for line in predictions:  # each as soon as it is known
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Score a checkpoint; returns the exit code."""
    return entry.run(body, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
