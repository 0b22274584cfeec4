"""A score as text, JSON and CSV. Nothing here writes a file."""

from collections import Counter
from dataclasses import replace

from model_compound_scaling.command_line import tables
from model_scoring.counting.costs import Count
from model_scoring.counting.layer_widths import ACCUMULATORS
from model_scoring.counting.scoring import (
    REFERENCES,
    Score,
    layers,
    quantized_zeros,
    ternary_layers,
)
from model_scoring.counting.settings import RULE_SETS
from model_scoring.tracing.aten_operations import UNKNOWN
from model_scoring.tracing.operation_record import Record

COLUMNS = ("layer", "kind", "output", "in", "out", "weights", "zeros", "format")
NUMBERS = ("params", "adds", "mults")
WIDTHS = ("weight_bits", "activation_bits", "accumulator_bits")


def _row(record: Record, count: Count) -> list[str]:
    kind = "no rule" if record.kind == UNKNOWN else "ternary " * record.ternary + record.kind
    shape = "x".join(map(str, record.out_shape[1:]))
    weights = ["", ""]
    if count.weights:
        zeros = 1 - count.nonzeros / count.weights
        weights = [f"{count.weights:,}", f"{100 * zeros:.2f}%"]
    costs = [f"{count.params:,.1f}", f"{count.adds:,.0f}", f"{count.mults:,.0f}"]
    channels = [str(count.live_in), str(count.live_out)]
    return [record.name, kind, shape, *channels, *weights, count.format, *costs]


def table(score: Score, rules: str) -> list[str]:
    """The layers under one rule set, in order of execution."""
    rows = [[*COLUMNS, *NUMBERS]]
    rows += [_row(r, c) for r, c in zip(score.records, score.counts[rules], strict=True)]
    return tables.aligned(rows, {0, 1, 2, 7})


def _live(score: Score, rules: str) -> str:
    pairs = zip(score.records, score.counts[rules], strict=True)
    counted = [(r, c) for r, c in pairs if r.weights is not None and c.live_out]
    live = sum(c.live_out for _, c in counted)
    return f"{live:,} of {sum(r.weights.filters for r, _ in counted):,}"


def _by_accumulators(score: Score) -> list[list[str]]:
    """Operations and score under each choice of --accumulators, where layers sum whole numbers."""
    settings, rows = score.settings, []
    whole = any(r.weights is not None and r.activation_bits for r in score.records)
    for bits in ACCUMULATORS.values() if whole or settings.accumulators else ():
        chosen, row = replace(settings, accumulators=bits, tree_adder=True), []
        for rules in RULE_SETS:
            total, sums = score.totals[rules], [count.sums for count in score.counts[rules]]
            ops = total.ops + sum(s.cost(chosen) - s.cost(settings) for s in sums)
            result = total.storage_term + ops / REFERENCES[score.reference][1]
            row.append(f"{ops:,.0f}, {result:.6f}")
        name = f"{bits}-bit accumulators" if bits else "adder trees"
        rows.append([f"operations, score: {name}", *row])
    return rows


def _few_bits(score: Score) -> str:
    """How many layers have inputs of how many bits, where they are whole numbers."""
    found = Counter(r.activation_bits for r in layers(score) if r.activation_bits)
    shown = ", ".join(f"{bits} bits: {count}" for bits, count in sorted(found.items()))
    return f"; inputs of {shown}" if found else ""


def summary(score: Score, packed_bytes: int | None = None) -> list[str]:
    """Both rule sets side by side; beside their bytes those of a packed file, if there is one."""
    baselines = {
        "imagenet": "MobileNetV2-1.4, 6.9M parameters and 1170M operations",
        "cifar": "WideResNet-28-10, 36.5M parameters and 10.49G operations",
    }
    lines = (
        ("scoring parameters", ",.0f", "params"),
        ("bytes", ",.0f", "bytes"),
        ("additions", ",.0f", "adds"),
        ("multiplications", ",.0f", "mults"),
        ("operations", ",.0f", "ops"),
        ("energy in uJ", ",.2f", "energy_uj"),
        ("score: storage term", ".6f", "storage_term"),
        ("score: operations term", ".6f", "compute_term"),
        ("score", ".6f", "score"),
    )
    rows = [["", *RULE_SETS], ["live channels", *(_live(score, rules) for rules in RULE_SETS)]]
    for label, text, field in lines:
        values = (getattr(score.totals[rules], field) for rules in RULE_SETS)
        rows.append([label, *(format(value, text) for value in values)])
        if field == "bytes" and packed_bytes:
            rows.append(["bytes, packed file", *len(RULE_SETS) * [f"{packed_bytes:,}"]])
    rows += _by_accumulators(score)
    zeros, quantized = f"{100 * score.zeros:.2f} % of all parameters", quantized_zeros(score)
    if quantized is not None:
        zeros += f", {100 * quantized:.2f} % of the quantized weights"
    return [
        f"{score.parameters:,} parameters; zeros: {zeros}; "
        f"{len(ternary_layers(score))} of {len(layers(score))} layers ternary{_few_bits(score)}",
        *tables.aligned(rows),
        f"score relative to {baselines[score.reference]}",
    ]


def _fields(source: object, *names: str) -> dict[str, object]:
    return {name: getattr(source, name) for name in names}


def _layer(score: Score, index: int, rules: str) -> dict[str, object]:
    record, count = score.records[index], score.counts[rules][index]
    costs = {name: score.counts[name][index] for name in RULE_SETS}
    return {
        **_fields(record, "name", "kind", "ternary"),
        "in_shape": list(record.in_shape),
        "out_shape": list(record.out_shape),
        **_fields(count, "weights", "nonzeros", "live_in", "live_out", *WIDTHS),
        **{name: _fields(cost, "format", *NUMBERS) for name, cost in costs.items()},
    }


def to_dict(
    score: Score,
    *,
    model: str,
    checkpoint: str | None,
    image_size: int | list[int],
    rules: str = "published",
    top1: float | None = None,
) -> dict[str, object]:
    """What --json writes. Counts are in units; weights and live channels follow `rules`."""
    totals = ("params", "adds", "mults", "ops", "score", "energy_uj")
    return {
        "model": model,
        "checkpoint": checkpoint,
        "image_size": image_size,
        **_fields(score, "parameters", "zeros"),
        "top1": top1,
        **{name: _fields(score.totals[name], *totals) for name in RULE_SETS},
        "layers": [_layer(score, i, rules) for i in range(len(score.records))],
    }


def to_csv(score: Score, rules: str) -> str:
    """The layers, one line each, with the costs under both rule sets."""
    rows = []
    for i in range(len(score.records)):
        layer = _layer(score, i, rules)
        for side in ("in_shape", "out_shape"):
            layer[side] = "x".join(map(str, layer[side]))
        costs = {f"{name}_{k}": v for name in RULE_SETS for k, v in layer.pop(name).items()}
        rows.append(layer | costs)
    return tables.to_csv(rows[0], (row.values() for row in rows))
