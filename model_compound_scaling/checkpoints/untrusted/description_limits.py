"""Is what a checkpoint says about its network and data what this project writes? The fields may
have been edited by hand or by someone who means harm. One row per field. Sizes are bounded by the
checkpoint's own tensors: no description can ask for more than the file holds."""

import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data.datasets import DATASETS
from data.errors import UserError
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.efficientnet_keys import ORIGINS
from model_compound_scaling.networks.micronet_scaling import BASELINES
from model_compound_scaling.networks.registry import (
    ACTIVATION,
    REGISTRY,
    WITHOUT_PARTS,
    table_row,
)

NO_TEXT = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # neither a character nor a file name's byte
LARGEST_STATISTIC = 1e6  # of a mean or deviation
WIDEST = 65536  # channels that a network had before it was narrowed; they take no memory


@dataclass(frozen=True)
class Bounds:
    """What a file can hold."""

    tensors: int  # at least one for each block
    width: int  # largest dimension of any tensor


Check = Callable[[object, Bounds], bool]
Field = tuple[str, object]  # its name, which messages give, and its value


def _integer(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _width(value: object, bounds: Bounds) -> bool:
    return _integer(value, bounds.width)


def _blocks(value: object, bounds: Bounds) -> bool:
    whole = isinstance(value, list) and all(_integer(v, bounds.tensors) for v in value)
    return whole and sum(value) <= bounds.tensors


def _layer_widths(value: object, _: Bounds) -> bool:
    """Whether they fit the network's layers is seen when it is built."""
    tables = isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())
    return tables and all(type(n) is int for entry in value.values() for n in entry.values())


def _activations(value: object, _: Bounds) -> bool:
    """Whether they are of the network's layers is seen when it is built."""
    pairs = value.items() if isinstance(value, dict) else [(None, None)]
    texts = all(isinstance(part, str) for pair in pairs for part in pair)
    return texts and all(ACTIVATION.fullmatch(kind) for _, kind in pairs)


def _numbers(value: object, smallest: float) -> bool:
    if not isinstance(value, list | tuple) or len(value) not in (1, 3):
        return False
    return all(isinstance(v, int | float) and smallest <= v <= LARGEST_STATISTIC for v in value)


def _model(value: object, _: Bounds) -> bool:
    if not isinstance(value, str) or ":" not in value:
        return value in list(REGISTRY)  # table_row would import a module of that name
    try:
        return runs_foreign_code(value) or table_row(value) is not None
    except UserError:  # torchvision has no such network
        return False


NETWORK: dict[str, Check] = {
    "model": _model,
    "num_classes": _width,
    "arguments": lambda value, _: isinstance(value, dict),
    "widths": _layer_widths,
    "permanent": lambda value, _: type(value) is bool,
    "activations": _activations,
}
# arguments of a family or network; others from elsewhere have none: what they were called with is
# not the file's to choose
ARGUMENTS: dict[str, dict[str, Check]] = {
    "micronet": {
        "blocks": _blocks,
        "channels": lambda value, bounds: (
            isinstance(value, list) and all(_width(v, bounds) for v in value)
        ),
        "stem": _width,
        "head": lambda value, bounds: value is None or _width(value, bounds),
    },
    "efficientnet": {"origin": lambda value, _: value in list(ORIGINS)},
    **{
        model: {name: lambda value, _: value in (None, True, False) for name in arguments}
        for model, arguments in WITHOUT_PARTS.items()
    },
}
DATA: dict[str, Check] = {
    "dataset": lambda value, _: value in list(DATASETS),
    "image_size": lambda value, _: _integer(value, 4096),  # pixels a side
    "holdout": lambda value, _: _numbers([value], 0) and value <= 100,
    "holdout_seed": lambda value, _: _integer(value + 1, 2**32) if type(value) is int else False,
    "mean": lambda value, _: _numbers(value, -LARGEST_STATISTIC),
    "std": lambda value, _: _numbers(value, 1e-12),
    "class_names": lambda value, _: (
        isinstance(value, list | tuple)
        and all(isinstance(v, str) and not NO_TEXT.search(v) for v in value)
    ),
}


def runs_foreign_code(model: str) -> bool:
    """Whether building the network imports what is not part of this project or torchvision."""
    return ":" in model and not model.startswith("torchvision:")


def check_description(path: Path, *, network: dict, data: object, bounds: Bounds) -> None:
    """Raise CheckpointError, naming the field, for a description this project would not write.
    `network` has the fields of a NetworkSpec; `bounds` say what the file can hold at most."""
    for name, value in _wrong_fields(network, data, bounds):
        raise CheckpointError(  # reprlib: the plain repr of nested lists can be endless
            f"{path}: {name} is {reprlib.repr(value)}, which is no valid value: the file is "
            "damaged or was edited"
        )


def _wrong_fields(network: dict, data: object, bounds: Bounds) -> Iterator[Field]:
    """Those with other values, in an order in which each check may rely on those before it."""
    optional = {"widths": {}, "permanent": False, "activations": {}}
    yield from _wrong("network", optional | network, NETWORK, bounds)
    model, arguments = network["model"], network["arguments"]
    rows = ARGUMENTS.get(REGISTRY[model].family if model in REGISTRY else model, {})
    if unknown := arguments.keys() - rows:
        yield "network.arguments", list(unknown)
    before = replace(bounds, width=WIDEST) if network.get("widths") else bounds
    yield from _wrong("network.arguments", arguments, rows, before)
    for key in rows.keys() & {"blocks", "channels"}:
        if len(arguments[key]) != len(BASELINES[model].blocks):
            yield f"network.arguments.{key}", arguments[key]
    if not isinstance(data, dict):
        yield "data", data
    yield from _wrong("data", data, {key: DATA[key] for key in DATA if key in data}, bounds)
    if len(data.get("mean", ())) != len(data.get("std", ())):
        yield "data.std", data.get("std")


def _wrong(group: str, values: dict, rows: dict[str, Check], bounds: Bounds) -> Iterator[Field]:
    for key, allows in rows.items():
        if not allows(values.get(key), bounds):
            yield f"{group}.{key}", values.get(key)
