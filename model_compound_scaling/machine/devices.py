"""Where networks are trained, and how they are laid out there."""

import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import UserError
from model_compound_scaling.machine import place, processes


def choose_device(cuda: bool | None) -> torch.device:
    """This process' GPU if there is one, unless told otherwise."""
    if cuda and not torch.cuda.is_available():
        raise UserError("--cuda: no usable GPU here; leave it out or pass --no-cuda")
    if cuda is False or not torch.cuda.is_available():
        return torch.device("cpu")
    local = place.find_place().local
    if local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU of its own: {torch.cuda.device_count()} "
            "are visible (see --nproc_per_node and CUDA_VISIBLE_DEVICES)"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def make_deterministic(on: bool) -> None:
    """Same bits in every run on the same kind of device; else the fastest algorithms."""
    torch.backends.cudnn.benchmark = not on
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def lay_out(network: nn.Module, device: torch.device, *, channels_last: bool = False) -> nn.Module:
    """The network on its device, with the same values in all processes."""
    network = network.to(device)
    processes.broadcast(list(network.state_dict().values()))
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _distributed(network: nn.Module, device: torch.device, *, find: bool) -> nn.Module:
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=find)


def for_processes(
    network: nn.Module,
    device: torch.device,
    *,
    uses_all: bool = False,
    compiled: bool = False,
) -> nn.Module:
    """What to call in training: the network, with gradients averaged over all processes (DDP) and
    compiled if asked for. BatchNorm normalises each process' images; its running statistics are the
    first's. `uses_all`: every step, in every process, needs every parameter. Else DDP looks which
    ones the output depends on (0.1 to 0.4 ms); those of no process keep no gradient."""
    if processes.world_size() > 1:
        if not uses_all:  # DDP warns once where it finds none unused: let it do so unheard
            with processes.silent(2):
                alone = _distributed(nn.Linear(1, 1), torch.device("cpu"), find=True)
                alone(torch.zeros(1, 1)).sum().backward()
        network = _distributed(network, device, find=not uses_all)
    return torch.compile(network) if compiled else network
