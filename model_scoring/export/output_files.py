"""Output files by atomic writes, all of them or none: a temporary file each, fsync, rename."""

import io
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from data.errors import UserError
from model_compound_scaling.checkpoints.atomic_save import write_synced
from model_compound_scaling.checkpoints.errors import DiskError
from model_compound_scaling.checkpoints.network_checkpoint import network_content
from model_compound_scaling.networks.building import skeleton
from model_compound_scaling.networks.narrowing import describe
from model_compound_scaling.networks.registry import NetworkSpec

Files = dict[Path, bytes]


def write_all(files: Files) -> None:
    """Write all files or, if one cannot be, none. Links are followed, devices and pipes work."""
    folder = next((path for path in files if path.is_dir()), None)
    if folder:
        raise UserError(f"{folder} is a folder: name a file in it")
    special = {path: files[path] for path in files if path.exists() and not path.is_file()}
    regular = {path.resolve(): files[path] for path in files if path not in special}
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in regular}
    try:
        for path, content in regular.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(content, temporaries[path])
        for path, temporary in temporaries.items():  # only now that all of them could be written
            temporary.replace(path)
        for path, content in special.items():
            path.write_bytes(content)
    except OSError as error:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {error.strerror}") from None


def checkpoint_bytes(network: nn.Module, spec: NetworkSpec, data: dict) -> bytes:
    """A checkpoint of ours of a network that may be narrower than `spec` says."""
    widths = describe(skeleton(replace(spec, widths={})), network)
    buffer = io.BytesIO()
    torch.save(network_content(network, replace(spec, widths=widths), data), buffer)
    return buffer.getvalue()
