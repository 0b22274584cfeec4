"""Several processes on one run: the few things they tell each other, by torch.distributed.
`torchrun` and `srun` start one process a device; every function also works for a single process.
Who is who is in `place`, whose names can be had from here, too."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import UserError
from model_compound_scaling.machine import place
from model_compound_scaling.machine.place import is_main, rank, stop, world_size  # noqa: F401

T = TypeVar("T")


@contextlib.contextmanager
def silent(*descriptors: int) -> Iterator[None]:
    """Inside, nothing reaches these file descriptors (1: stdout, 2: stderr), from C++ either."""
    streams, kept = [stream for stream in (sys.stdout, sys.stderr) if stream], {}
    for stream in streams:
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in descriptors:
        with contextlib.suppress(OSError):  # it is closed: nobody hears it anyway
            kept[number] = os.dup(number)
            os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        ctypes.CDLL(None).fflush(None)  # what C still buffers was printed inside
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def start(device: torch.device) -> None:
    """Meet the other processes, if there are any; collectives follow the tensors' device."""
    here = place.find_place()
    if here.size == 1 or dist.is_initialized():
        return
    backend, url = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", place.rendezvous()
    with silent(1):  # some versions of Gloo report on stdout whom they are connected to
        dist.init_process_group(backend, init_method=url, rank=here.rank, world_size=here.size)


def all_reduce_max(value: int) -> int:
    """The largest of all processes' values."""
    if world_size() == 1:
        return value
    # asked once a step: on the CPU, so that nobody waits for the GPU
    shared = torch.tensor(value)
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
    result, error = outcome
    if error is not None:
        error.shared = True
        raise error
    return result


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


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
    extremes = torch.stack([sums, ~sums])  # the largest of ~x is ~ of the smallest x
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if not torch.equal(extremes[0], ~extremes[1]):
        raise RuntimeError(f"{what} differ between the processes: this run cannot be trusted")


def checksum(tensor: Tensor) -> Tensor:
    """An int64 on the tensor's device that changes with any bit and with the order."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(integers[tensor.element_size()]).flatten().long()
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return (bits * (places * 2654435761 + 1)).sum()
