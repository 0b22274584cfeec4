"""Checkpoints of networks, read from any source and written.

Ours are plain dicts of tensors and plain values, which load with `weights_only=True`:
`{"network": {"model", "num_classes", "arguments"}, "data": {...}, "state_dict": {...}, ...}`,
with "widths" in "network" if some layers are narrower than the arguments say, and "activations" if
the inputs of some are quantized."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import some
from model_compound_scaling.checkpoints.atomic_save import read_file
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.key_forms import fitting, state_dict, unnamed_tensors
from model_compound_scaling.checkpoints.untrusted import Bounds, check_description
from model_compound_scaling.networks.building import build, skeleton
from model_compound_scaling.networks.narrowing import WidthsError
from model_compound_scaling.networks.permanent_weights import (
    make_permanent,
    tie_equal,
    tied_apart,
    untie,
)
from model_compound_scaling.networks.quantizers import describe
from model_compound_scaling.networks.quantizers.layer_inputs import positive_steps
from model_compound_scaling.networks.registry import OPTIONAL_FIELDS, NetworkSpec, table_row


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the file's keys, and what the file says about them."""

    path: Path
    state: dict[str, Tensor]
    network: NetworkSpec | None  # None: a foreign file
    content: dict  # the whole file; resuming needs the rest of it
    lines: list[str] = field(default_factory=list)  # what is to be said about how it was read

    @property
    def data(self) -> dict:
        """Data set, normalisation and image size the network was trained with, if recorded."""
        return self.content.get("data", {}) if self.network else {}


def find_file(name: str, *, folder: Path, flag: str) -> Path:
    """A bare name is looked up in the stage's folder first; anything else is a path."""
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    if Path(name).is_dir():
        raise CheckpointError(f"{flag} {name} is a folder: name a file in it")
    files = (file for file in folder.glob("[!.]*") if file.is_file())
    found = sorted(file.name for file in files if file.suffix != ".manifest")  # of version 0.1
    listing = ", ".join(found) or "no files"
    raise CheckpointError(f"{flag} {name}: no such file; {folder} holds {listing}")


def require_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, naming the first tensor, for NaN and infinite values."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinite values")


def _require_tensors(state: dict, content: dict, path: Path) -> None:
    """CheckpointError, which says what the file holds instead, if there is no state dict."""
    if state:
        return
    parts = (part for part in [content, *content.values()] if isinstance(part, dict))
    if any("param_groups" in part for part in parts):
        raise CheckpointError(
            f"{path} holds the state of an optimizer, not a network: save its state_dict(), too"
        )
    if key := unnamed_tensors(content):
        raise CheckpointError(
            f"{path} holds tensors without names, in the list {key}, as torch_ema and optimizers "
            "do: copy them into the network (copy_to of torch_ema) and save its state_dict()"
        )
    names = ", ".join(map(str, list(content)[:5]))[:100] or "nothing"
    raise CheckpointError(f"{path} holds no tensors, only {names}: save a state_dict()")


def read_checkpoint(path: Path) -> Checkpoint:
    """A file of ours or a foreign state dict, raw or wrapped. CheckpointError if it cannot be read,
    for no tensors, NaN, infinite values, or a description that does not belong to them."""
    content = read_file(path)
    state, lines = state_dict(content)
    _require_tensors(state, content, path)
    require_finite(state, path)
    network, data = content.get("network"), content.get("data", {})
    spec, fields = None, {"model", "num_classes", "arguments"}
    if isinstance(network, dict) and set(network) - OPTIONAL_FIELDS == fields:  # else foreign
        width = max((n for tensor in state.values() for n in tensor.shape), default=1)
        bounds = Bounds(tensors=len(state), width=width)
        check_description(path, network=network, data=data, bounds=bounds)
        spec = NetworkSpec(**network)
    return Checkpoint(path, state, spec, content, lines)


def network_content(network: nn.Module, spec: NetworkSpec, data: dict, **more: object) -> dict:
    """Content of a checkpoint of ours: the network, its description (`spec`, with the activations
    that the network has), and anything else."""
    layout = torch.contiguous_format  # not channels_last, which training may use
    state = {k: v.cpu().clone(memory_format=layout) for k, v in network.state_dict().items()}
    described = replace(spec, activations=describe(network)).content()
    return {"network": described, "data": data, "state_dict": state, **more}


def load_network(checkpoint: Checkpoint, spec: NetworkSpec) -> nn.Module:
    """The network with the checkpoint's weights, on the CPU, in training mode. Raises
    CheckpointError if keys, shapes or described widths do not fit."""
    try:
        network = skeleton(spec) if spec.widths else build(spec)
        if spec.widths:  # the full network, of any width that a file claims, never takes memory
            unsaved = dict(network.named_buffers()).keys() - network.state_dict().keys()
            network = build(spec) if unsaved else network.to_empty(device="cpu")
    except WidthsError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    own = network.state_dict()
    form, wrong = fitting(checkpoint.state, own)
    if spec.permanent and wrong:  # as the builder's hooks have them
        network = load_network(checkpoint, replace(spec, permanent=False))
        make_permanent(network)
        return network
    if form.lines:  # values may be computed ones
        require_finite(form.state, checkpoint.path)
    counters = {k: torch.zeros_like(v) for k, v in own.items() if k.endswith("batches_tracked")}
    state = OrderedDict({**counters, **form.state})
    state._metadata = own._metadata  # MNASNets refuse tensors without a version
    ties = untie(network, tied_apart(network, form.state)) if spec.permanent else {}
    for name, other in tied_apart(network, form.state).items():
        raise CheckpointError(
            f"{checkpoint.path}: {name} and {other} differ, but are one tensor in {spec.model}: "
            "the builder must not tie them"
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = some(wrong, "; ") or " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path} does not fit {spec.model}: {reason}") from None
    tie_equal(ties)
    # as loaded: a float64 may be none that float32 has
    if wrong := positive_steps(spec.activations, network.state_dict()):
        raise CheckpointError(f"{checkpoint.path}: {wrong} is not above 0, or not finite")
    if spec.widths:
        _require_coherent(checkpoint, spec)
    return network


def _require_coherent(checkpoint: Checkpoint, spec: NetworkSpec) -> None:
    """CheckpointError unless a narrowed network's layers take each other's channels: a forward
    pass on the meta device computes shapes only."""
    row, network = table_row(spec.model), skeleton(spec).eval()
    size = checkpoint.data.get("image_size", row.image_size)
    image = torch.zeros(1, row.channels, size, size, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            network(image)
    except NotImplementedError:  # an operation that needs values
        return
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint.path}: the widths it describes do not fit together ({reason})"
        ) from None
