"""Ternary layers in files of their own: bit masks and centroids, or sparse tensors."""

import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.few_values import ternary_values
from model_scoring.export.output_files import Files
from model_scoring.tracing.operation_record import Record

LARGEST_LAYER = 1 << 30  # weights; a sparse file could claim any number


def pack(weight: Tensor) -> dict[str, np.ndarray]:
    """A ternary layer as two bit masks, 8 weights a byte, its two values and its shape."""
    centroids = np.array(ternary_values(weight) or (0, 0), dtype=np.float32)
    shape = np.array(weight.shape, dtype=np.int64)
    values = weight.detach().cpu().numpy().astype(np.float32)
    # -0.0 and 0.0 are equal, and in neither mask
    low, high = (np.packbits((values == c) & (values != 0)) for c in centroids)
    return {"low_mask": low, "high_mask": high, "centroids": centroids, "shape": shape}


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
