"""Which network a state dict holds, by its keys and shapes."""

import math
from dataclasses import replace
from itertools import product

from torch import Tensor

from data.errors import UserError, some
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.key_forms import Form, branches, differences, fitting, forms
from model_compound_scaling.checkpoints.network_checkpoint import Checkpoint
from model_compound_scaling.checkpoints.untrusted import runs_foreign_code
from model_compound_scaling.networks.building import expected_tensors, skeleton
from model_compound_scaling.networks.efficientnet_keys import KEY_STYLES
from model_compound_scaling.networks.micronet_scaling import BASELINES, round_channels, scaled_shape
from model_compound_scaling.networks.narrowing import WidthsError
from model_compound_scaling.networks.permanent_weights import make_permanent
from model_compound_scaling.networks.registry import (
    REGISTRY,
    WITHOUT_PARTS,
    NetworkSpec,
    default_spec,
    table_row,
)

PROBES = (10, 100)  # numbers of classes that a builder is likely to take


def _expected(spec: NetworkSpec, file: str = "") -> dict[str, Tensor]:
    """The network's state dict, as shapes. CheckpointError for widths and activations that it
    cannot have; `file` begins it."""
    try:
        return expected_tensors(spec)
    except WidthsError as error:
        raise CheckpointError(f"{file}{error}") from None


def mismatches(state: dict[str, Tensor], spec: NetworkSpec) -> list[str]:
    """How a state dict differs from a network, one phrase each; empty if it fits as it is."""
    return differences(state, _expected(spec))


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


def _candidate(model: str, form: Form, origin: str | None) -> NetworkSpec | None:
    """The network `model` would be, if the tensors were its: classes from the last layer."""
    row, style = table_row(model), KEY_STYLES.get(form.style)
    classifier = form.state.get(f"{row.classifier}.weight")
    if classifier is None or classifier.dim() != 2:
        return None
    arguments = {}
    if row.family == "micronet":
        arguments = _micronet_arguments(model, form.state)
    elif row.family == "efficientnet":  # whose weights they are: as told, or as their keys suggest
        arguments = style and {"origin": origin or style.origin}
    return None if arguments is None else NetworkSpec(model, len(classifier), arguments)


def recognise(checkpoint: Checkpoint, *, origin: str | None = None) -> NetworkSpec | None:
    """The network of the table whose keys and shapes are exactly these, None if there is none."""
    for form, model in product(forms(checkpoint.state), REGISTRY):
        candidate = _candidate(model, form, origin)
        if candidate and not mismatches(form.state, candidate):
            return candidate
    return None


def _branches_hint(checkpoint: Checkpoint, spec: NetworkSpec | None) -> str:
    """Which parts of a file, below one name, are the network, or any of the table if None."""
    expected = spec and _expected(spec)

    def fits(state: dict[str, Tensor]) -> bool:
        if expected is None:
            return recognise(replace(checkpoint, state=state)) is not None
        return not fitting(state, expected)[1]

    fit = {repr(name): None for name, below in branches(checkpoint.state) if fits(below)}
    return f"; what is below {some([*fit])} fits: save its state_dict() alone" if fit else ""


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


def held_classes(model: str, state: dict[str, Tensor]) -> int:
    """How many classes a network of unknown layers has: with which its builder makes the shapes
    found. Where the builder does not tell, a guess: as many as the last matrix has rows."""
    try:
        few, many = (expected_tensors(default_spec(model, n)) for n in PROBES)
    except UserError:  # it takes other numbers
        few = many = {}
    found, numbers = fitting(state, few)[0].state, set()
    for key in found.keys() & few.keys() & many.keys():
        for held, low, high in zip(found[key].shape, few[key].shape, many[key].shape, strict=False):
            if low != high:
                numbers.add(PROBES[0] + (held - low) * (PROBES[1] - PROBES[0]) / (high - low))
    if len(numbers) == 1 and (number := numbers.pop()).is_integer() and number >= 1:
        return int(number)
    shapes = [tensor.shape for tensor in state.values() if tensor.dim() > 0]
    matrices = [shape for shape in shapes if len(shape) == 2]
    return [(1,), *(matrices or shapes)][-1][0]


def _claimed(
    checkpoint: Checkpoint, model: str | None, num_classes: int | None, origin: str | None
) -> NetworkSpec:
    """The network that the file or --model names, as far as the tensors tell what it is like."""
    found = checkpoint.network
    if model is None:
        found = found or recognise(checkpoint, origin=origin)
        if found is None:
            raise CheckpointError(
                f"{checkpoint.path} is no network of the table: say what it is with --model "
                f"(for MicroNets also --dw-multps and --phi){_branches_hint(checkpoint, None)}"
            )
        if runs_foreign_code(found.model):
            raise CheckpointError(
                f"{checkpoint.path} says its network is built by {found.model}, which would run "
                f"code that the file chose: confirm with --model {found.model}"
            )
    if found and model in (None, found.model):
        return found
    candidates = (_candidate(model, form, origin) for form in forms(checkpoint.state))
    if candidate := next(filter(None, candidates), None):
        return candidate
    return default_spec(model, num_classes or held_classes(model, checkpoint.state))


def _fit(checkpoint: Checkpoint, spec: NetworkSpec) -> tuple[NetworkSpec, Form, list[str]]:
    """The network, or what else a file may hold of it if that fits better: all but the parts that
    only training needs; with its hooks made permanent. Beside it the tensors' form that fits best,
    and how they differ, one phrase each."""
    variants = [spec]
    if without := WITHOUT_PARTS.get(spec.model):
        variants.append(replace(spec, arguments=spec.arguments | without))
    if runs_foreign_code(spec.model):
        variants.append(replace(spec, permanent=True))
    fits = []
    for variant in variants:
        form, wrong = fitting(checkpoint.state, _expected(variant, f"{checkpoint.path}: "))
        if not wrong:
            return variant, form, wrong
        fits.append((variant, form, wrong))
    return min(fits, key=lambda fit: len(fit[2]))


def network_spec(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    depth_width: tuple[float, float] | None = None,
    num_classes: int | None = None,
    told_by: str = "--dataset",
    origin: str | None = None,
) -> NetworkSpec:
    """Which network a checkpoint holds: what the file says, else the flags, else its shapes; with
    `num_classes` (the data set's, as the flag `told_by` says). CheckpointError with the first
    mismatches and fitting flags."""
    spec = _claimed(checkpoint, model, num_classes, origin)
    if depth_width:
        if table_row(spec.model).family != "micronet":
            raise UserError(f"--dw-multps scales MicroNets; {spec.model} has one size")
        shape = scaled_shape(spec.model, depth=depth_width[0], width=depth_width[1])
        spec = NetworkSpec(spec.model, spec.num_classes, shape)
    tried, (spec, form, wrong) = spec, _fit(checkpoint, spec)
    if wrong and num_classes:  # perhaps only in the number of classes, which is said below
        held = held_classes(spec.model, checkpoint.state)
        again = _fit(checkpoint, replace(tried, num_classes=held))
        if not again[2]:
            spec, form, wrong = again
    if wrong:
        found = checkpoint.network or recognise(checkpoint, origin=origin)
        hint = f"; it fits {fitting_flags(found)}" if found and found != tried else ""
        hint = hint or _branches_hint(checkpoint, spec)
        raise CheckpointError(
            f"{checkpoint.path} does not fit {spec.model}: {some(wrong, '; ')}{hint}"
        )
    if num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{checkpoint.path} has {spec.num_classes} classes, the data set has {num_classes}: "
            f"choose the {told_by} it was trained on"
        )
    checkpoint.lines.extend(form.lines)
    if spec.permanent or not runs_foreign_code(spec.model):
        return spec
    names = make_permanent(skeleton(spec))
    if names:
        line = "masks, norms or other parametrizations are made permanent"
        checkpoint.lines.append(f"{line}: {some(names)}")
    return replace(spec, permanent=bool(names))
