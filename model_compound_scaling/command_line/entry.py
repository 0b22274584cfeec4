"""From a command line to an exit code. What needs torch is imported where it is first needed:
torch takes seconds to load, and a mistake in the flags is said before that."""

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.datasets import find_dataset
from data.errors import UserError, printable
from model_compound_scaling.command_line.parser import Parser
from model_compound_scaling.machine import place, signals
from model_compound_scaling.machine.log import say
from model_compound_scaling.networks.registry import canonical_name
from model_compound_scaling.runs.save_interval import Interval

if TYPE_CHECKING:
    import torch

    from model_compound_scaling.runs import Configuration, RunRequest


def run(body: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence | None) -> int:
    """Parse, run `body`, turn a user's mistake into one line and its exit code."""
    # logs piped to a file stay current; what its encoding lacks is written as an escape
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    args = parser.parse_args(argv)
    try:
        with signals.listening():
            body(args)
    except UserError as error:
        if place.is_main() or not error.shared:
            say(f"{parser.prog}: error: {error}")
        return error.exit_code
    except signals.Stopped as stop:
        if place.is_main():  # all processes stop, and for the same reason
            print(f"{parser.prog}: {stop}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        from data.file_loader import worker_death

        if known := worker_death(error) or out_of_memory(error) or not_here(error):
            say(f"{parser.prog}: error: {known}")
            return known.exit_code
        # not raised: the interpreter would keep what the frames hold, such as processes that read
        # images, and wait for them for ever
        traceback.print_exc()
        return 1
    finally:
        place.stop()
    return 0


def out_of_memory(error: Exception) -> UserError | None:
    """What torch's message about memory that is not there means; None for any other error."""
    import torch

    cpu = "DefaultCPUAllocator: "
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and cpu not in str(error):
        return None
    reason = str(error).rpartition(cpu)[2].partition(". ")[0].partition("\n")[0] or "out of memory"
    return UserError(f"{reason}: lower --batch-size, --val-batch-size or the network's size")


# what torch says of a machine that lacks something -> what to do about it
LACKING = {
    r"(\S+ not implemented for|Unsupported dtype|.* dtypes? not supported\. Got) '?(Half|BFloat16)":
        "use another --amp, or off: this device has it in full precision only",
    r"(No working C\+\+|Failed to find C) compiler": "leave out --compile, or install g++",
}  # fmt: skip


def not_here(error: Exception) -> UserError | None:
    """What torch's message means about what this machine cannot do; None for any other error."""
    for pattern, remedy in LACKING.items():
        if isinstance(error, RuntimeError) and (found := re.search(pattern, str(error))):
            return UserError(f"{found[0].strip()}: {remedy}")
    return None


def run_request(
    args: argparse.Namespace,
    configuration: "Callable[[dict], Configuration]",
    folder: Path,
    device: "torch.device",
    **more: object,
) -> "RunRequest":
    """The run in a folder that the flags ask for, configured by them, the number of processes, and
    `more`; `configuration`: the parser's, of such values."""
    from model_compound_scaling.runs import RunRequest
    from model_compound_scaling.runs.environment import environment

    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    config = configuration(plain | {"processes": place.world_size()} | more)
    interval = Interval.parse(args.checkpoint_every)
    override = args.resume_override
    return RunRequest(folder, config, args.resume, override, interval, environment(device))


def require_names(args: argparse.Namespace) -> None:
    """UserError, before a checkpoint is read, if there is no such network or data set."""
    if args.model:
        canonical_name(args.model)
    if args.dataset:
        find_dataset(args.dataset, args.image_size or 1)


def require_single(resume: str, points: int) -> None:
    """A checkpoint named by --resume belongs to one run only."""
    if resume not in ("auto", "none") and points > 1:
        raise UserError(f"--resume {resume} belongs to one network, but the grid has {points}")


def start(args: argparse.Namespace) -> "torch.device":
    """The device of this process, which then has met the others."""
    import torch

    from model_compound_scaling.machine import devices, processes

    device = devices.choose_device(args.cuda)
    devices.make_deterministic(args.deterministic)
    processes.start(device)
    if place.world_size() > 1:
        signals.defer()
    elif device.type == "cuda" and (gpus := torch.cuda.device_count()) > 1:
        hint = f"{gpus} GPUs are visible, one is used; for all: torchrun --nproc_per_node {gpus}"
        print(hint, *map(printable, sys.argv))
    return device
