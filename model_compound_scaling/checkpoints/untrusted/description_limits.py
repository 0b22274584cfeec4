"""Is what a checkpoint says about its network and data what this project writes?

The fields may have been edited by hand or by someone who means harm. One row per field. Sizes are
bounded by the checkpoint's own tensors: no description can ask for more than the file holds.
"""

import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from data.datasets import DATASETS
from data.errors import UserError
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.efficientnet_keys import ORIGINS
from model_compound_scaling.networks.micronet_scaling import BASELINES
from model_compound_scaling.networks.registry import REGISTRY, table_row

LARGEST_IMAGE = 4096  # pixels a side
LARGEST_STATISTIC = 1e6  # of a mean or deviation
WIDEST = 65536  # channels that a network had before it was narrowed; they take no memory


@dataclass(frozen=True)
class Bounds:
    """What a file can hold."""

    tensors: int  # at least one for each block
    width: int  # largest dimension of any tensor

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Bounds":
        """What a checkpoint's own tensors allow."""
        dimensions = (n for tensor in state.values() for n in tensor.shape)
        return cls(tensors=len(state), width=max(dimensions, default=1))


Check = Callable[[object, Bounds], bool]


def _integer(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _width(value: object, bounds: Bounds) -> bool:
    return _integer(value, bounds.width)


def _widths(value: object, bounds: Bounds) -> bool:
    return isinstance(value, list) and all(_width(v, bounds) for v in value)


def _blocks(value: object, bounds: Bounds) -> bool:
    whole = isinstance(value, list) and all(_integer(v, bounds.tensors) for v in value)
    return whole and sum(value) <= bounds.tensors


def _layer_widths(value: object, bounds: Bounds) -> bool:
    entries = value.values() if isinstance(value, dict) else [None]
    return all(
        isinstance(entry, dict) and all(type(size) is int for size in entry.values())
        for entry in entries
    )


def _numbers(value: object, smallest: float) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) in (1, 3)
    return numbers and all(
        isinstance(v, int | float) and smallest <= v <= LARGEST_STATISTIC for v in value
    )


def _words(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


MICRONET: dict[str, Check] = {
    "blocks": _blocks,
    "channels": _widths,
    "stem": _width,
    "head": lambda value, bounds: value is None or _width(value, bounds),
}
# a family's arguments; networks from elsewhere have none: what they were called with is not the
# file's to choose
ARGUMENTS: dict[str, dict[str, Check]] = {
    "micronet": MICRONET,
    "efficientnet": {"origin": lambda value, bounds: value in list(ORIGINS)},
}
DATA: dict[str, Check] = {
    "dataset": lambda value, bounds: value in list(DATASETS),
    "image_size": lambda value, bounds: _integer(value, LARGEST_IMAGE),
    "mean": lambda value, bounds: _numbers(value, -LARGEST_STATISTIC),
    "std": lambda value, bounds: _numbers(value, 1e-12),
    "class_names": lambda value, bounds: _words(value),
}


def runs_foreign_code(model: str) -> bool:
    """Whether building the network imports what is not part of this project or torchvision."""
    return ":" in model and not model.startswith("torchvision:")


def check_description(path: Path, *, network: dict, data: object, bounds: Bounds) -> None:
    """Raise CheckpointError, naming the field, for a description this project would not write.

    `network` has the fields of a NetworkSpec; `bounds` say what the file can hold at most.
    """
    before = replace(bounds, width=WIDEST) if network.get("widths") else bounds
    rows = {
        "model": lambda value, bounds: isinstance(value, str) and _known(value),
        "num_classes": _width,
        "arguments": lambda value, bounds: isinstance(value, dict),
        "widths": _layer_widths,  # whether they fit its layers is seen when it is built
    }
    _check_fields(path, "network", network, rows, bounds, required=rows.keys() - {"widths"})
    _check_arguments(path, network["model"], network["arguments"], before)
    if not isinstance(data, dict):
        raise _damaged(path, "data", data)
    _check_fields(path, "data", data, DATA, bounds)
    if len(data.get("mean", ())) != len(data.get("std", ())):
        raise _damaged(path, "data.std", data.get("std"))


def _known(model: str) -> bool:
    if model in REGISTRY or runs_foreign_code(model):
        return True
    try:
        return ":" in model and table_row(model) is not None
    except UserError:
        return False


def _check_arguments(path: Path, model: str, arguments: dict, bounds: Bounds) -> None:
    family = REGISTRY[model].family if model in REGISTRY else "other"
    rows = ARGUMENTS.get(family, {})
    if unknown := arguments.keys() - rows:
        raise _damaged(path, "network.arguments", list(unknown))
    _check_fields(path, "network.arguments", arguments, rows, bounds, required=rows.keys())
    for key in rows.keys() & {"blocks", "channels"}:
        if len(arguments[key]) != len(BASELINES[model].blocks):
            raise _damaged(path, f"network.arguments.{key}", arguments[key])


def _check_fields(
    path: Path,
    group: str,
    values: dict,
    rows: dict[str, Check],
    bounds: Bounds,
    *,
    required: Collection[str] = (),
) -> None:
    for key, allows in rows.items():
        if (key in required or key in values) and not allows(values.get(key), bounds):
            raise _damaged(path, f"{group}.{key}", values.get(key))


def _damaged(path: Path, name: str, value: object) -> CheckpointError:
    return CheckpointError(  # reprlib: the plain repr of nested lists can be endless
        f"{path}: {name} is {reprlib.repr(value)}, which is no valid value: the file is damaged or "
        "was edited"
    )
