"""What tests of several rooms make their networks and files with."""

import tarfile
from pathlib import Path

import torch
from torch import nn


def filled(create) -> nn.Module:
    """A network of ones: quick to make, and no weight is zero."""
    try:
        with torch.device("meta"):
            network = create().to_empty(device="cpu").eval()
    except NotImplementedError:  # RegNets compute their widths with tensors
        network = create().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(1)
    return network


def unpack(archive: Path, target: Path, count: int, wanted: str) -> Path:
    """The first `count` members of an archive whose names contain `wanted`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and wanted in member.name:
                tar.extract(member, target, filter="data")
                count -= 1
            if not count:
                break
    return next(target.iterdir())
