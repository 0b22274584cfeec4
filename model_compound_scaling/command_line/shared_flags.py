"""What the three command lines share: flags, one-line errors, exit codes."""

import argparse
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from data import DATASETS
from data.errors import UserError
from data.load import AUGMENT, NORMALIZE
from data.streaming import worker_death
from model_compound_scaling import distributed, flag_types, interruption
from model_compound_scaling.devices import choose_device, make_deterministic, unused_gpus
from model_compound_scaling.efficientnet import ORIGINS
from model_compound_scaling.registry import REGISTRY


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds defaults as one would type them; a default of None or False is in the help's words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, (action.help or "").replace("%", "%%")
        silent = default is None or default is False or default is argparse.SUPPRESS
        if silent or not action.option_strings:
            return text
        if isinstance(default, Path):
            default = os.path.relpath(default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default: {shown})".lstrip()


class Parser(argparse.ArgumentParser):
    """One-line errors that name the flag and the nearest valid one; no abbreviations."""

    def __init__(self, *, prog: str, required: str = "", description: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {required} [flags]".replace("  ", " "),
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")]
        if "unrecognized" in message and unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            message = f"unknown flag {' '.join(unknown)}"
            message += f"; did you mean {close[0]}?" if close else "; --help lists all flags"
        say(f"{self.prog}: error: {message}")
        self.exit(2)


def run(body: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence | None) -> int:
    """Parse, run `body`, turn a user's mistake into one line and its exit code."""
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)  # logs piped to a file stay current
    try:
        with interruption.listening():
            body(args)
    except UserError as error:
        if distributed.is_main() or not error.shared:
            say(f"{parser.prog}: error: {error}")
        return error.exit_code
    except interruption.Stopped as stop:
        if distributed.is_main():  # all processes stop, and for the same reason
            print(f"{parser.prog}: {stop}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        known = worker_death(error) or out_of_memory(error)
        if known:
            say(f"{parser.prog}: error: {known}")
            return known.exit_code
        # not raised: the interpreter would keep what the frames hold, such as processes that read
        # images, and wait for them for ever
        traceback.print_exc()
        return 1
    finally:
        distributed.stop()
    return 0


def out_of_memory(error: Exception) -> UserError | None:
    """What torch's message about memory that is not there means; None for any other error."""
    cpu = "DefaultCPUAllocator: "
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and cpu not in str(error):
        return None
    reason = str(error).rpartition(cpu)[2].partition(". ")[0].partition("\n")[0] or "out of memory"
    return UserError(f"{reason}: lower --batch-size, --val-batch-size or the network's size")


def say(line: str) -> None:
    """One line on stderr: what all processes find wrong before they meet, only the first says."""
    if distributed.is_main():
        print(line, file=sys.stderr)
    elif distributed.world_size() > 1:
        print(f"process {distributed.rank()}: {line}", file=sys.stderr)


def add_data_flags(parser: Parser, *, training: bool, default: str) -> None:
    """`default` says in words which data set is taken without --dataset."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", metavar="NAME", help=f"one of {', '.join(DATASETS)} (default: {default})"
    )
    group.add_argument(
        "--data-path",
        type=flag_types.folder,
        metavar="DIR",
        help="folder of the data set "
        "(default: data/downloads, where CIFAR and MNIST are downloaded to)",
    )
    group.add_argument(
        "--image-size",
        type=flag_types.positive,
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
            type=flag_types.positive,
            default=256,
            metavar="N",
            help="training images a step, of all processes together",
        )
    group.add_argument(
        "--val-batch-size",
        type=flag_types.positive,
        default=512,
        metavar="N",
        help="images at once when evaluating",
    )
    group.add_argument(
        "--workers",
        type=flag_types.natural,
        default=4,
        metavar="N",
        help="processes that read images from disk; small data sets stay in memory",
    )
    group.add_argument(
        "--cache-gb",
        type=flag_types.non_negative,
        default=4.0,
        metavar="X",
        help="folders of small images (up to 64 pixels) are held in memory, and augmented on the "
        "device, up to X 10^9 bytes; larger ones are read from disk in each epoch",
    )
    group.add_argument(
        "--skip-bad-images",
        type=flag_types.natural,
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
        type=flag_types.natural,
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
        type=flag_types.multiplier,
        nargs=2,
        metavar=("D", "W"),
        help="depth and width multiplier of a MicroNet (default: read off the tensors)",
    )
    group.add_argument(
        "--phi",
        type=flag_types.exponent,
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
        type=flag_types.interval,
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


def config(args: argparse.Namespace, **more: object) -> dict:
    """The flags, and how many processes share the batches, as plain values for config.json."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return plain | {"processes": distributed.world_size()} | more


def require_single(resume: str, points: int) -> None:
    """A checkpoint named by --resume belongs to one run only."""
    if resume not in ("auto", "none") and points > 1:
        raise UserError(f"--resume {resume} belongs to one network, but the grid has {points}")


def start(args: argparse.Namespace) -> torch.device:
    """The device of this process, which then has met the others."""
    device = choose_device(args.cuda)
    make_deterministic(args.deterministic)
    distributed.start(device)
    if distributed.world_size() > 1:
        interruption.defer()
    if hint := unused_gpus(device):
        print(f"{hint} {' '.join(sys.argv)}")
    return device
