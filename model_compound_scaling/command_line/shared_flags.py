"""What the three command lines share: flags, one-line errors, exit codes."""

import argparse
from pathlib import Path

from data.datasets import AUGMENT, DATASETS, NORMALIZE
from model_compound_scaling.command_line import flag_values
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.networks.efficientnet_keys import ORIGINS
from model_compound_scaling.networks.registry import REGISTRY


def add_data_flags(parser: Parser, *, training: bool, default: str) -> None:
    """`default` says in words which data set is taken without --dataset."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", metavar="NAME", help=f"one of {', '.join(DATASETS)} (default: {default})"
    )
    group.add_argument(
        "--data-path",
        type=flag_values.folder,
        metavar="DIR",
        help="folder of the data set "
        "(default: data/downloads, where CIFAR and MNIST are downloaded to)",
    )
    group.add_argument(
        "--image-size",
        type=flag_values.positive,
        metavar="S",
        help="height and width of the input (default: that of a checkpoint, else the data set's "
        "or network's)",
    )
    group.add_argument(
        "--normalize",
        choices=NORMALIZE,
        help="mean and deviation of the input (default: that of a checkpoint, else the data set's)",
    )
    if training:
        group.add_argument(
            "--augment",
            choices=AUGMENT,
            default="default",
            help="training images: the data set's usual recipe, only flip and crop, or as they are",
        )
        group.add_argument(
            "--batch-size",
            type=flag_values.positive,
            default=256,
            metavar="N",
            help="training images a step, of all processes together",
        )
    group.add_argument(
        "--val-batch-size",
        type=flag_values.positive,
        default=512,
        metavar="N",
        help="images at once when evaluating",
    )
    group.add_argument(
        "--workers",
        type=flag_values.natural,
        default=4,
        metavar="N",
        help="processes that read images from disk; small data sets stay in memory",
    )
    group.add_argument(
        "--cache-gb",
        type=flag_values.non_negative,
        default=4.0,
        metavar="X",
        help="folders of small images (up to 64 pixels) are held in memory, and augmented on the "
        "device, up to X 10^9 bytes; larger ones are read from disk in each epoch",
    )
    group.add_argument(
        "--skip-bad-images",
        type=flag_values.natural,
        default=0,
        metavar="N",
        help="leave out, and name, up to N image files that cannot be read, instead of stopping",
    )


def add_machine_flags(parser: Parser, *, training: bool) -> None:
    """Where it runs, and the seed."""
    group = parser.add_argument_group("machine")
    if training:
        group.add_argument(
            "--deterministic",
            action="store_true",
            help="only algorithms that give the same bits in every run on a GPU of the same kind; "
            "slower there",
        )
    group.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute on the GPU (default: if there is one)",
    )
    group.add_argument(
        "--seed",
        type=flag_values.natural,
        default=0,
        metavar="N",
        help="of initialisation, order of the images, augmentation and dropout",
    )


def add_network_flags(parser: Parser) -> None:
    """What network a checkpoint holds."""
    group = parser.add_argument_group("network, if the checkpoint does not describe it")
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(REGISTRY)}, torchvision:NAME, or module:function (a builder that "
        "takes num_classes) (default: what the checkpoint says or its tensors show)",
    )
    group.add_argument(
        "--dw-multps",
        type=flag_values.multiplier,
        nargs=2,
        metavar=("D", "W"),
        help="depth and width multiplier of a MicroNet (default: read off the tensors)",
    )
    group.add_argument(
        "--phi",
        type=flag_values.exponent,
        default=3.5,
        metavar="PHI",
        help="exponent of both multipliers; takes effect with --dw-multps",
    )
    group.add_argument(
        "--weights-origin",
        choices=("auto", *ORIGINS),
        default="auto",
        help="where EfficientNet weights were trained: decides BatchNorm eps and padding; tf also "
        "for lukemelas' and timm's tf_ models; auto goes by the names of the tensors",
    )


def add_run_flags(parser: Parser, *, output: Path) -> None:
    """Where a run's files go, and what happens to an earlier run there."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output",
        "--slurm-save",
        type=Path,
        default=output,
        metavar="DIR",
        help="folder of the results; each network of a grid has its own below",
    )
    group.add_argument(
        "--resume",
        default="auto",
        metavar="auto|PATH|none",
        help="auto continues the same run in the same folder, PATH begins with another run's "
        "last.pt (and later continues what that began), none starts over",
    )
    group.add_argument(
        "--resume-override",
        action="store_true",
        help="continue although the configuration is another",
    )
    group.add_argument(
        "--checkpoint-every",
        type=flag_values.interval,
        default="15min",
        metavar="INTERVAL",
        help="save within epochs, too, as often as this: minutes as in 15min, or 500steps",
    )
    group.add_argument(
        "--no-resume",
        dest="resume",
        action="store_const",
        const="none",
        default=argparse.SUPPRESS,
        help="same as --resume none; an earlier run in the folder is kept under another name",
    )
