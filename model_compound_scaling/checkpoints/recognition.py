"""Which network a state dict holds, by its keys and shapes."""

import math

from torch import Tensor

from data.errors import UserError
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import Checkpoint
from model_compound_scaling.checkpoints.untrusted import runs_foreign_code
from model_compound_scaling.networks.building import expected_tensors
from model_compound_scaling.networks.efficientnet_keys import KEY_STYLES
from model_compound_scaling.networks.micronet_scaling import BASELINES, round_channels, scaled_shape
from model_compound_scaling.networks.narrowing import WidthsError
from model_compound_scaling.networks.registry import REGISTRY, NetworkSpec, default_spec, table_row


def mismatches(state: dict[str, Tensor], spec: NetworkSpec) -> list[str]:
    """How a state dict differs from a network, one phrase each; empty if it fits."""
    try:
        expected = expected_tensors(spec)
    except WidthsError as error:
        raise CheckpointError(str(error)) from None
    needed = (key for key in expected if not key.endswith("num_batches_tracked"))
    phrases = [f"{key} is missing" for key in needed if key not in state]
    phrases += [f"{key} does not belong" for key in state if key not in expected]
    shapes = [(k, tuple(state[k].shape), tuple(expected[k].shape)) for k in expected if k in state]
    return phrases + [f"{key} is {found}, not {own}" for key, found, own in shapes if found != own]


def _micronet_arguments(model: str, state: dict[str, Tensor]) -> dict[str, object] | None:
    """Blocks and channels: stages are `layerS`, each block's last BatchNorm is `bn3`."""
    blocks, channels = [], []
    while (first := f"layer{len(blocks) + 1}.0.bn3.weight") in state:
        stage = first.partition(".")[0]
        blocks.append(sum(k.startswith(f"{stage}.") and k.endswith(".bn3.weight") for k in state))
        channels.append(len(state[first]))
    if len(blocks) != len(BASELINES[model].blocks) or "conv1.weight" not in state:
        return None
    stem, head = state["conv1.weight"], state.get("conv2.weight")
    sizes = {"stem": len(stem), "head": None if head is None else len(head)}
    return {"blocks": blocks, "channels": channels, **sizes}


def _candidate(model: str, checkpoint: Checkpoint, origin: str | None) -> NetworkSpec | None:
    """The network `model` would be, if the checkpoint were one: classes from the last layer."""
    row, style = table_row(model), KEY_STYLES.get(checkpoint.style)
    classifier = checkpoint.state.get(f"{row.classifier}.weight")
    if classifier is None or classifier.dim() != 2:
        return None
    arguments = {}
    if row.family == "micronet":
        arguments = _micronet_arguments(model, checkpoint.state)
    elif row.family == "efficientnet":  # whose weights they are: as told, or as their keys suggest
        arguments = style and {"origin": origin or style.origin}
    return None if arguments is None else NetworkSpec(model, len(classifier), arguments)


def recognise(checkpoint: Checkpoint, *, origin: str | None = None) -> NetworkSpec | None:
    """The network of the table whose keys and shapes are exactly these, None if there is none."""
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
    `num_classes` (the data set's) must agree. Raises CheckpointError with the first mismatches and
    the flags that would fit."""
    found = checkpoint.network or recognise(checkpoint, origin=origin)
    if model is None and found and runs_foreign_code(found.model):
        raise CheckpointError(
            f"{checkpoint.path} says its network is built by {found.model}, which would run code "
            f"that the file chose: confirm with --model {found.model}"
        )
    if found is None and model is None:
        raise CheckpointError(
            f"{checkpoint.path} is no network of the table: say what it is with --model "
            "(for MicroNets also --dw-multps and --phi)"
        )
    spec = found
    if model not in (None, found and found.model):
        sizes = [len(tensor) for tensor in checkpoint.state.values() if tensor.dim() > 0]
        classes = num_classes or [1, *sizes][-1]  # of unknown layers, the last one's bias or weight
        spec = _candidate(model, checkpoint, origin) or default_spec(model, classes)
    if depth_width:
        if table_row(spec.model).family != "micronet":
            raise UserError(f"--dw-multps scales MicroNets; {spec.model} has one size")
        shape = scaled_shape(spec.model, depth=depth_width[0], width=depth_width[1])
        spec = NetworkSpec(spec.model, spec.num_classes, shape)
    if wrong := mismatches(checkpoint.state, spec):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        hint = f"; it fits {fitting_flags(found)}" if found else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit {spec.model}: {'; '.join(wrong[:3])}{more}{hint}"
        )
    if num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{checkpoint.path} has {spec.num_classes} classes, the data set has {num_classes}: "
            "choose the --dataset it was trained on"
        )
    return spec
