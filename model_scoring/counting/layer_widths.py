"""Widths that a file says: of the layers of a network whose quantization its code does not show."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, printable, some

if TYPE_CHECKING:
    from model_scoring.tracing.operation_record import Record, Trace

ACCUMULATORS = {"tree": None, "16": 16, "32": 32}  # bits; None: trees of adders, as they grow
FIELDS = ("weight_bits", "activation_bits")
EXAMPLE = '{"REGEX": {"weight_bits": 4, "activation_bits": 8}}'


@dataclass(frozen=True)
class LayerWidths:
    """Bits of the whole numbers that the layers' weights and inputs are, times a step; None: as the
    network has them."""

    pattern: str  # searched for in a layer's name
    weight_bits: int | None = None
    activation_bits: int | None = None


def add_flags(add: Callable) -> None:
    """--accumulators and --widths, to a parser's section."""
    widths = "bits of all sums in trees and of whole numbers: as they grow, or fixed"
    add("--accumulators", tuple(ACCUMULATORS), "tree", None, f"{widths}; the summary compares them")
    shown = f"bits of layers whose code does not show them: {EXAMPLE}"
    add("--widths", Path, None, "FILE.json", shown)


def chosen(accumulators: str, path: Path | None) -> tuple[int | None, tuple[LayerWidths, ...]]:
    """What those flags ask for. UserError as `read_widths`."""
    return ACCUMULATORS[accumulators], read_widths(path)


def read_widths(path: Path | None) -> tuple[LayerWidths, ...]:
    """From a JSON file: a regular expression -> bits, 1 to 32. UserError if it is anything else."""
    if path is None:
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--widths {printable(path)}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--widths {printable(path)} is no JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--widths {printable(path)} has to be {EXAMPLE}")
    return tuple(_entry(path, pattern, given) for pattern, given in content.items())


def _entry(path: Path, pattern: str, given: object) -> LayerWidths:
    where = f"--widths {printable(path)}: {printable(pattern)!r}"
    bits = given.values() if isinstance(given, dict) and given else [None]
    if isinstance(given, dict) and (unknown := given.keys() - set(FIELDS)):
        raise UserError(
            f"{where} knows {' and '.join(FIELDS)}, not {some(sorted(map(repr, unknown)))}"
        )
    if not all(type(n) is int and 1 <= n <= 32 for n in bits):
        raise UserError(f"{where} has to have bits from 1 to 32, as in {EXAMPLE}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{where} is no regular expression: {error}") from None
    return LayerWidths(pattern, **given)


def with_widths(trace: "Trace", widths: Iterable[LayerWidths]) -> "Trace":
    """A trace whose layers have these widths; of several that name a layer the last ones count.
    UserError for one that names none."""
    records = list(trace.records)
    layers = [i for i, record in enumerate(records) if record.weights is not None]
    for entry in widths:
        named = [i for i in layers if re.search(entry.pattern, records[i].name)]
        if not named:
            names = some([records[i].name for i in layers])
            pattern = printable(entry.pattern)
            raise UserError(f"--widths: {pattern!r} names no layer; there are {names or 'none'}")
        for i in named:
            records[i] = _with(records[i], entry)
    return replace(trace, records=records)


def _with(record: "Record", entry: LayerWidths) -> "Record":
    weights, bits = record.weights, entry.activation_bits or record.activation_bits
    if entry.weight_bits:
        weights = replace(weights, bits=entry.weight_bits, steps=1)
    return replace(record, weights=weights, activation_bits=bits)
