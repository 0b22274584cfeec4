"""Checkpoints: read any, recognise what network they hold, write ours.

Ours are plain dicts, so that they load with `weights_only=True`:
`{"network": {"model", "num_classes", "arguments"}, "data": {...}, "state_dict": {...}, ...}`,
with "widths" in "network" if some layers are narrower than the arguments say.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import CheckpointError, UserError
from model_compound_scaling import efficientnet
from model_compound_scaling.descriptions import Bounds, check_description, runs_foreign_code
from model_compound_scaling.micronet import BASELINES, round_channels, scaled_shape
from model_compound_scaling.registry import (
    REGISTRY,
    NetworkSpec,
    build,
    default_spec,
    expected_tensors,
    skeleton,
    table_row,
)
from model_compound_scaling.storage import read_file, write_file

__all__ = ["read_file", "write_file"]  # whoever reads and writes checkpoints imports them here
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
FIELDS = {"model", "num_classes", "arguments"}  # of a described network


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under this project's keys, and what the file says about them."""

    path: Path
    state: dict[str, Tensor]
    network: NetworkSpec | None  # None: a foreign file
    content: dict  # the whole file; resuming needs the rest of it
    style: str | None = None  # key style, for EfficientNets

    @property
    def data(self) -> dict:
        """Data set, normalisation and image size the network was trained with, if recorded."""
        return self.content.get("data", {}) if self.network else {}


def find_file(name: str, *, folder: Path, flag: str) -> Path:
    """A bare name is looked up in the stage's folder first; anything else is a path."""
    candidates = [folder / name, Path(name)]
    for path in candidates:
        if path.is_file():
            return path
    found = sorted(
        file.name for file in folder.glob("[!.]*") if file.is_file() and file.suffix != ".manifest"
    )
    listing = ", ".join(found) if found else "no files"
    raise CheckpointError(f"{flag} {name}: no such file; {folder} holds {listing}")


def require_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, naming the first tensor, if one has values that are no numbers."""
    broken = next(
        (k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()), None
    )
    if broken:
        raise CheckpointError(f"{path}: {broken} holds NaN or infinite values")


def read_checkpoint(path: Path) -> Checkpoint:
    """A file of ours or a foreign state dict, raw or wrapped, with or without prefixes."""
    content = read_file(path)
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    pairs = ((k, v) for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor))
    state = dict(pairs)
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    require_finite(state, path)
    network, data = content.get("network"), content.get("data", {})
    ours = isinstance(network, dict) and set(network) - {"widths"} == FIELDS
    if ours:
        check_description(path, network=network, data=data, bounds=Bounds.of(state))
    return Checkpoint(
        path=path,
        state=efficientnet.to_torchvision_keys(state),
        network=NetworkSpec(**network) if ours else None,
        content=content,
        style=efficientnet.key_style(set(state)),
    )


def network_content(network: nn.Module, spec: NetworkSpec, data: dict, **more: object) -> dict:
    """Content of a checkpoint of ours: the network, its description, and anything else."""
    layout = torch.contiguous_format  # not channels_last, which training may use
    state = {
        key: value.detach().cpu().clone(memory_format=layout)
        for key, value in network.state_dict().items()
    }
    return {"network": spec.content(), "data": data, "state_dict": state, **more}


def mismatches(state: dict[str, Tensor], spec: NetworkSpec) -> list[str]:
    """How a state dict differs from a network, one phrase each; empty if it fits."""
    expected = expected_tensors(spec)
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    phrases = [f"{key} is missing" for key in expected if key not in state and key not in counters]
    phrases += [f"{key} does not belong" for key in state if key not in expected]
    phrases += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    return phrases


def _micronet_arguments(state: dict[str, Tensor]) -> dict | None:
    """Blocks and channels of a MicroNet, read off its tensors; None if it is none."""
    stages = 0
    blocks, channels = [], []
    while f"layer{stages + 1}.0.bn3.weight" in state:
        stages += 1
        firsts = [k for k in state if k.startswith(f"layer{stages}.") and k.endswith(".bn3.weight")]
        blocks.append(len(firsts))
        channels.append(len(state[f"layer{stages}.0.bn3.weight"]))
    if not stages or "conv1.weight" not in state:
        return None
    head = state.get("conv2.weight")
    return {
        "blocks": blocks,
        "channels": channels,
        "stem": len(state["conv1.weight"]),
        "head": None if head is None else len(head),
    }


def _candidate(model: str, checkpoint: Checkpoint, origin: str | None) -> NetworkSpec | None:
    """The network `model` would be, if the checkpoint were one: arguments from shapes."""
    row, arguments = table_row(model), {}
    classifier = checkpoint.state.get(f"{row.classifier}.weight")
    if classifier is None or classifier.dim() != 2:
        return None
    if row.family == "micronet":
        arguments = _micronet_arguments(checkpoint.state)
        if arguments is None or len(arguments["blocks"]) != len(BASELINES[model].blocks):
            return None
    elif row.family == "efficientnet":
        if checkpoint.style is None:
            return None
        arguments = {"origin": origin or efficientnet.KEY_STYLES[checkpoint.style].origin}
    return NetworkSpec(model, len(classifier), arguments)


def recognise(checkpoint: Checkpoint, *, origin: str | None = None) -> NetworkSpec | None:
    """The network of the table whose tensors are exactly these, None if there is none."""
    candidates = (_candidate(model, checkpoint, origin) for model in REGISTRY)
    return next((c for c in candidates if c and not mismatches(checkpoint.state, c)), None)


def fitting_flags(spec: NetworkSpec) -> str:
    """The command-line flags that describe a network, or that none do."""
    if spec.widths:
        return "what the file says: leave out --model and --dw-multps"
    if "blocks" not in spec.arguments:
        return f"--model {spec.model}"
    base = BASELINES[spec.model]
    depth = min(b / n for b, n in zip(spec.arguments["blocks"], base.blocks, strict=True))
    depth = math.floor(1e4 * depth) / 1e4  # rounded up, it would be one block more
    exact = spec.arguments["channels"]
    widths = (w / 100 for w in range(10, 1000))
    width = next((w for w in widths if [round_channels(w * c) for c in base.channels] == exact), 0)
    return f"--model {spec.model} --dw-multps {depth:g} {width:g} --phi 1"


def network_spec(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    depth_width: tuple[float, float] | None = None,
    num_classes: int | None = None,
    origin: str | None = None,
) -> NetworkSpec:
    """Which network a checkpoint holds: what the file says, else the flags, else its shapes.

    `num_classes` (the data set's) must agree. Raises CheckpointError with the first mismatches
    and the flags that would fit.
    """
    found = checkpoint.network or recognise(checkpoint, origin=origin)
    if model is None and found and runs_foreign_code(found.model):
        raise CheckpointError(
            f"{checkpoint.path} says its network is built by {found.model}, which would run code "
            f"that the file chose: confirm with --model {found.model}"
        )
    spec = found if model in (None, found and found.model) else None
    if spec is None and model is None:
        raise CheckpointError(
            f"{checkpoint.path} is no network of the table: say what it is with --model "
            "(for MicroNets also --dw-multps and --phi)"
        )
    if spec is None:
        classes = num_classes or _last_size(checkpoint.state)
        spec = _candidate(model, checkpoint, origin) or default_spec(model, classes)
    if depth_width:
        if table_row(spec.model).family != "micronet":
            raise UserError(f"--dw-multps scales MicroNets; {spec.model} has one size")
        depth, width = depth_width
        shape = scaled_shape(spec.model, depth=depth, width=width)
        spec = NetworkSpec(spec.model, spec.num_classes, shape)
    _require_fit(checkpoint, spec, found)
    if num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{checkpoint.path} has {spec.num_classes} classes, the data set has {num_classes}: "
            "choose the --dataset it was trained on"
        )
    return spec


def _last_size(state: dict[str, Tensor]) -> int:
    """Classes of a network of unknown layers: size of its last bias or weight."""
    return len([v for v in state.values() if v.dim() > 0][-1])


def _require_fit(checkpoint: Checkpoint, spec: NetworkSpec, found: NetworkSpec | None) -> None:
    wrong = mismatches(checkpoint.state, spec)
    if not wrong:
        return
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    hint = f"; it fits {fitting_flags(found)}" if found else ""
    raise CheckpointError(
        f"{checkpoint.path} does not fit {spec.model}: {'; '.join(wrong[:3])}{more}{hint}"
    )


def load_network(checkpoint: Checkpoint, spec: NetworkSpec) -> nn.Module:
    """The network with the checkpoint's weights, on the CPU, in training mode."""
    network = _narrow_shell(spec) if spec.widths else build(spec)
    own = network.state_dict()
    counters = {k: torch.zeros_like(v) for k, v in own.items() if k.endswith("batches_tracked")}
    state = OrderedDict({**counters, **checkpoint.state})
    state._metadata = own._metadata  # MNASNets refuse tensors without a version
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit {spec.model}: {error}") from None
    if spec.widths:
        _require_coherent(checkpoint, spec)
    return network


def _narrow_shell(spec: NetworkSpec) -> nn.Module:
    """A narrowed network, its values still to be loaded. The full one, of which a file may claim
    any width, never takes memory."""
    network = skeleton(spec)
    loaded = network.state_dict().keys()
    others = [name for name, _ in network.named_buffers() if name not in loaded]
    return build(spec) if others else network.to_empty(device="cpu")


def _require_coherent(checkpoint: Checkpoint, spec: NetworkSpec) -> None:
    """CheckpointError if a narrowed network's layers do not take each other's channels."""
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
