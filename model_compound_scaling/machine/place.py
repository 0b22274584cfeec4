"""Which of a run's processes this one is. Without torch, so that a mistake in the flags is said,
once, before it is loaded; `processes` holds what the processes tell each other."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from data.errors import UserError


@dataclass(frozen=True)
class Place:
    """A process of a run; `local` counts within its machine, whose cores `here` of them share."""

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """What torchrun, or else srun, says in the environment. UserError if it makes no sense."""
    # not SLURM_NTASKS: a batch script has it, too, and its one process would wait for the others
    # srun gives each process cores of its own, torchrun all of them the same
    for rank, size, local, here in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    ):
        if size in environment and rank in environment:
            try:
                numbers = (int(environment.get(name, 0)) for name in (rank, size, local))
                place = Place(*numbers, here=max(1, int(environment.get(here, 1))))
            except ValueError:
                raise UserError(f"{rank}, {size} and {local} must be whole numbers") from None
            if not 0 <= place.rank < place.size:
                raise UserError(f"{rank} {place.rank} is not below {size} {place.size}")
            return place
    return Place()


def rendezvous(environment: Mapping[str, str] = os.environ) -> str:
    """Where the processes meet, as a URL: torchrun's address, or the first machine of srun's."""
    # the first name of a SLURM node list: gpu[03-05,9],cpu1 -> gpu03
    nodes = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", environment.get("SLURM_STEP_NODELIST", ""))
    first = nodes[1] + (nodes[2] or "") if nodes else "127.0.0.1"
    port = 20000 + int(environment.get("SLURM_JOB_ID", 0)) % 20000  # another for each job
    host, port = environment.get("MASTER_ADDR") or first, environment.get("MASTER_PORT") or port
    return f"tcp://{host}:{port}"


def _group() -> ModuleType | None:
    """torch.distributed once this process has met the others, for which it must be loaded."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def rank() -> int:
    """This process' number, from 0."""
    group = _group()
    return group.get_rank() if group else find_place().rank


def world_size() -> int:
    """The number of processes that have met."""
    group = _group()
    return group.get_world_size() if group else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def stop() -> None:
    """Leave the others."""
    if group := _group():
        group.destroy_process_group()
