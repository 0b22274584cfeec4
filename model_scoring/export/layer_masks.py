"""Files of this stage. Each is written beside its place and moved there, whole or not at all."""

import hashlib
import io
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import CheckpointError, DiskError, UserError
from model_compound_scaling.checkpoints import network_content
from model_compound_scaling.manifests import manifest_path, manifest_text
from model_compound_scaling.registry import NetworkSpec, skeleton
from model_compound_scaling.storage import write_synced
from model_compound_scaling.widths import describe
from model_scoring.records import Record
from model_scoring.weights import ternary_values

Files = dict[Path, bytes]
LARGEST_LAYER = 1 << 30  # weights; a sparse file could claim any number


def write_all(files: Files) -> None:
    """Write every file or, if one cannot be, none. Links are followed, devices and pipes written
    to."""
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
        for path, temporary in temporaries.items():
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
    full = skeleton(replace(spec, widths={}))
    narrow = replace(spec, widths=describe(full, network))
    buffer = io.BytesIO()
    torch.save(network_content(network, narrow, data), buffer)
    return buffer.getvalue()


def checkpoint_files(path: Path, network: nn.Module, spec: NetworkSpec, data: dict) -> Files:
    """The checkpoint and, where it will be a file, the manifest that vouches for it."""
    content = checkpoint_bytes(network, spec, data)
    if path.exists() and not path.is_file():
        return {path: content}
    place, digest = path.resolve(), hashlib.sha256(content).hexdigest()
    text = manifest_text(place.name, size=len(content), sha256=digest)
    return {path: content, manifest_path(place): text.encode()}


def pack(weight: Tensor) -> dict[str, np.ndarray]:
    """A ternary layer as two bit masks, 8 weights a byte, its two values and its shape."""
    low, high = ternary_values(weight) or (0.0, 0.0)
    values = weight.detach().cpu().numpy().astype(np.float32)
    return {
        "low_mask": np.packbits((values == np.float32(low)) & (values != 0)),
        "high_mask": np.packbits((values == np.float32(high)) & (values != 0)),
        "centroids": np.array([low, high], dtype=np.float32),
        "shape": np.array(weight.shape, dtype=np.int64),
    }


def unpack(packed: dict[str, np.ndarray]) -> Tensor:
    """The layer that `pack` packed."""
    shape = tuple(packed["shape"].tolist())
    size = math.prod(shape)
    if not all(size <= 8 * len(packed[side]) for side in ("low_mask", "high_mask")):
        raise ValueError(f"its shape {shape} has more weights than its masks")
    result = np.zeros(size, dtype=np.float32)
    for side, value in zip(("low_mask", "high_mask"), packed["centroids"], strict=True):
        result[np.unpackbits(packed[side], count=size).astype(bool)] = value
    return torch.from_numpy(result.reshape(shape))


def layer_files(records: Iterable[Record], folder: Path, *, sparse: bool) -> Files:
    """Content of each ternary layer's file: `NAME.npz`, or with `sparse` a COO tensor `NAME.pt`."""
    files: Files = {}
    for record in records:
        buffer = io.BytesIO()
        if sparse:
            torch.save(record.weight.detach().cpu().to_sparse_coo(), buffer)
        else:
            np.savez(buffer, **pack(record.weight))
        files[folder / f"{record.name}.{'pt' if sparse else 'npz'}"] = buffer.getvalue()
    return files


def load_layer(path: Path) -> Tensor:
    """The dense weights of a saved layer, packed or sparse."""
    try:
        if path.suffix == ".pt":
            layer = torch.load(path, weights_only=True)
            if layer.numel() > LARGEST_LAYER:
                raise ValueError(f"it claims {layer.numel():,} weights")
            return layer.to_dense()
        with np.load(path) as packed:
            return unpack(dict(packed))
    except Exception as error:  # damaged files fail in many ways
        reason = str(error).partition("\n")[0][:120]
        raise CheckpointError(f"{path} is no saved layer: {reason}") from None
