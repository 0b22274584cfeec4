"""From run_scoring.py's flags for packed files and predictions to what they name."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from data.errors import UserError
from model_compound_scaling.command_line import flag_values
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.inference import prediction
from model_scoring.packed_file.format import Packed, pack


def add_flags(parser: Parser) -> None:
    """--export and --predict, and what belongs to them."""
    group = parser.add_argument_group("packed files and predictions")
    group.add_argument(
        "--export",
        type=Path,
        metavar="FILE.ec2t",
        help="write the whole network, entropy-coded, in one file that --t-model reads",
    )
    group.add_argument(
        "--export-precision",
        choices=("fp16", "fp32"),
        help="of tensors that are not ternary; fp32 keeps every bit of them. Ternary layers and "
        "their values are always exact (default: fp16)",
    )
    group.add_argument(
        "--predict",
        type=Path,
        metavar="IMAGE_OR_FOLDER",
        help="print the most probable classes of an image, or of all in a folder",
    )
    group.add_argument(
        "--top",
        type=flag_values.positive,
        metavar="K",
        help=f"classes that --predict prints (default: {prediction.TOP}, or all of fewer)",
    )


def export(
    args: argparse.Namespace, network: nn.Module, spec: NetworkSpec, data: dict
) -> Packed | None:
    """The packed network, if it is asked for. `data`: what is known of its images."""
    if not args.export:
        return None
    half = args.export_precision != "fp32"
    packed = pack(network.state_dict(), spec, data, half=half)
    if packed.wide:
        named = ", ".join(packed.wide[:3]) + (", ..." if len(packed.wide) > 3 else "")
        print(f"warning: kept in 32 bit, beyond the range of fp16: {named}", file=sys.stderr)
    return packed


def predict(
    args: argparse.Namespace,
    network: nn.Module,
    *,
    spec: NetworkSpec,
    data: dict,
    device: torch.device,
) -> Iterator[str]:
    """The predictions as lines; `data`: what is known of the network's images. Mistakes in the
    flags show before the first is computed."""
    if "mean" not in data:
        raise UserError(
            "--predict needs --normalize or --dataset: the checkpoint does not say how its images "
            "were normalised"
        )
    row = table_row(spec.model)
    prepare = prediction.Preparation(
        prediction.choose_transform(
            data.get("dataset"), image_size=data["image_size"], family=row.family
        ),
        row.channels,
        (tuple(data["mean"]), tuple(data["std"])),
    )
    names = data.get("class_names", ())
    if len(names) != spec.num_classes:
        names = [str(i) for i in range(spec.num_classes)]
    return prediction.predict(
        network, args.predict, prepare=prepare, top=args.top, names=names, device=device
    )
