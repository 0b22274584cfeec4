"""Several processes on one run: who is who, and the few things they tell each other.

`torchrun` and `srun` start one process a device; every function here also works without them, for
a single process.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import UserError

T = TypeVar("T")
FIRST_PORT, PORTS = 20000, 20000


@dataclass(frozen=True)
class Place:
    """This process among those of the run; `local` counts within its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """What torchrun, or else srun, says in the environment. UserError if it makes no sense."""
    # not SLURM_NTASKS: a batch script has it, too, and its one process would wait for the others
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if size in environment and rank in environment:
            try:
                place = Place(*(int(environment.get(name, 0)) for name in (rank, size, local)))
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
    port = FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % PORTS
    host, port = environment.get("MASTER_ADDR") or first, environment.get("MASTER_PORT") or port
    return f"tcp://{host}:{port}"


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Inside, nothing that C++ prints reaches stdout: some versions of Gloo report there whom they
    are connected to, in the middle of our log. stderr stays."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still buffers was printed inside
        os.dup2(kept, 1)
        os.close(kept)


def start(device: torch.device) -> None:
    """Meet the other processes, if there are any; collectives follow the tensors' device."""
    place = find_place()
    if place.size == 1 or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with silent_stdout():
        dist.init_process_group(
            backend, init_method=rendezvous(), rank=place.rank, world_size=place.size
        )


def stop() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if dist.is_initialized() else find_place().rank


def world_size() -> int:
    """The number of processes that have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def all_reduce_max(value: int) -> int:
    """The largest of all processes' values."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value)  # on the CPU: no wait for the GPU
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' values, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns, or the UserError it raises, in process 0, for all processes."""
    if world_size() == 1:
        return work()
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        outcome[1].shared = True
        raise outcome[1]
    return outcome[0]


def broadcast(tensors: list[Tensor]) -> None:
    """Overwrite the tensors with those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def require_equal(tensors: list[Tensor], what: str) -> None:
    """RuntimeError unless the tensors are the same bits in all processes."""
    if world_size() == 1:
        return
    sums = torch.stack([checksum(tensor) for tensor in tensors])
    largest, smallest = sums.clone(), sums.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    if not torch.equal(largest, smallest):
        raise RuntimeError(f"{what} differ between the processes: this run cannot be trusted")


def checksum(tensor: Tensor) -> Tensor:
    """An int64 on the tensor's device that changes with any bit and with the order."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(integers[tensor.element_size()]).flatten().long()
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return (bits * (places * 2654435761 + 1)).sum()
