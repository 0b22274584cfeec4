"""Interval analysis of activations: between which bounds their numbers lie for every image, and of
which step they are multiples, as behind any quantizer, however it is written.

Rounding begins a step, ReLU and clamp narrow the bounds, products with stored numbers scale both.
Copies keep them; what has no rule here may be any number.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from model_scoring.tracing.aten_operations import OPERATIONS, STRAIGHT_THROUGH
from model_scoring.tracing.channel_rules import Call
from model_scoring.tracing.operation_record import ANY, Numbers, Tag, Trace

ROUNDINGS = {"round": round, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}
IDENTITIES = ("clone", "alias", "detach", "lift_fresh", "_to_copy", "dropout")
COMPARISONS = ("gt", "ge", "lt", "le")
ZERO, TRUTH = Numbers(0.0, 0.0), Numbers(0.0, 1.0, 1.0)
Ends = tuple[Numbers | None, Numbers | None]  # a lower and an upper bound


def given(call: Call, name: str) -> Numbers:
    """Of an argument: a number, an image, or stored ones, of which the bounds are known."""
    tag, number = call.tag(name), call.arguments.get(name)
    if tag is None:
        return Numbers(float(number), float(number)) if isinstance(number, int | float) else ANY
    if tag.from_image:
        return tag.numbers
    if tag.value is None or tag.value.is_complex() or not tag.value.numel():
        return ANY
    low, high = map(float, tag.value.aminmax())
    return ANY if math.isnan(low) else Numbers(low, high)


def hull(parts: Iterable[Numbers]) -> Numbers:
    """What holds for each part; if their steps differ, the bits of the widest."""
    parts = list(parts)
    low, high = min(p.low for p in parts), max(p.high for p in parts)
    step = next((p.step for p in parts if p.step), None)
    if all(p.multiples_of(step) for p in parts):
        return Numbers(low, high, step)
    bits = [p.bits for p in parts if p != ZERO]
    return Numbers(low, high, widest=max(bits) if bits and None not in bits else None)


def _round(x: Numbers, step: float, how: Callable[[float], int]) -> Numbers:
    """To multiples of a step; where float32 may round a half either way, the farther one."""
    ends = ((x.low / step, -1e-4), (x.high / step, 1e-4))
    return Numbers(*(step * how(e + m) if e and math.isfinite(e) else e for e, m in ends), step)


def _rounded(call: Call) -> Numbers:
    step = 10.0 ** -call.arguments.get("decimals", 0)
    return _round(given(call, "self"), step, ROUNDINGS[call.name])


def _cast(call: Call) -> Numbers:
    x, dtype = given(call, "self"), call.outputs[0].dtype
    if dtype == torch.bool:
        return TRUTH
    return x if dtype.is_floating_point or dtype.is_complex else _round(x, 1.0, math.trunc)


def larger(x: Numbers, y: Numbers) -> Numbers:
    """max(x, y)"""
    for one, other in ((x, y), (y, x)):
        if one.low >= other.high:
            return one
    step = x.step or y.step
    kept = step if x.multiples_of(step) and y.multiples_of(step) else None
    mixed = x.widest if y == ZERO else None
    return Numbers(max(x.low, y.low), max(x.high, y.high), kept, mixed)


def smaller(x: Numbers, y: Numbers) -> Numbers:
    """min(x, y)"""
    return larger(x.scaled(-1), y.scaled(-1)).scaled(-1)


def _bounds(*names: str) -> Callable[[Call], Ends]:
    """Arguments of those names that are no infinite numbers; "" is none."""

    def of(call: Call) -> Ends:
        ends = (given(call, n) if call.arguments.get(n) is not None else None for n in names)
        return tuple(None if e and e.low == e.high and math.isinf(e.low) else e for e in ends)

    return of


def _codes(call: Call) -> tuple[Numbers, Numbers]:
    """Of a fake-quantize operation: its input over the scale, rounded, and the scale."""
    scale = given(call, "scale")
    if not 0 < scale.low <= scale.high < math.inf:
        return ANY, ANY
    return _round(given(call, "self").scaled(1 / scale.high, 1 / scale.low), 1.0, round), scale


def _code_bounds(call: Call) -> Ends:
    """Of codes without the zero point, which a learned one is rounded to."""
    zero = _round(given(call, "zero_point"), 1.0, round)
    ends = (call.arguments[name] for name in ("quant_min", "quant_max"))
    return tuple(Numbers(end - zero.high, end - zero.low) for end in ends)


def disabled(call: Call) -> bool:
    """Whether a fake-quantize operation is switched off."""
    flags = (call.tag(name) for name in ("fake_quant_enabled", "fake_quant_on"))
    return any(f and f.value is not None and not bool(f.value.any()) for f in flags)


def _quantized(call: Call) -> Numbers:
    if disabled(call):
        return given(call, "self")
    (codes, scale), (low, high) = _codes(call), _code_bounds(call)
    return smaller(larger(codes, low), high).scaled(scale.low, scale.high)


QUANTIZERS = {name for name, row in OPERATIONS.items() if row.kind == "quantize"}
LIMITS: dict[str, Callable[[Call], Ends]] = {
    "relu": lambda call: (ZERO, None),
    "relu6": lambda call: (ZERO, Numbers(6.0, 6.0)),
    "clamp": _bounds("min", "max"),
    "clamp_min": _bounds("min", ""),
    "clamp_max": _bounds("", "max"),
    "hardtanh": _bounds("min_val", "max_val"),
    **dict.fromkeys(QUANTIZERS, _code_bounds),
}


def _clamped(call: Call) -> Numbers:
    x, (low, high) = given(call, "self"), LIMITS[call.name](call)
    x = x if low is None else larger(x, low)
    return x if high is None else smaller(x, high)


def needless(call: Call) -> int:
    """Bounds that a call sets although its input keeps them: one comparison less each."""
    if call.name not in LIMITS:
        return 0
    x = _codes(call)[0] if call.name in QUANTIZERS else given(call, "self")
    low, high = LIMITS[call.name](call)
    kept = (low is not None and x.low >= low.high, high is not None and x.high <= high.low)
    return sum(kept)


def _product(call: Call) -> Numbers:
    """With stored numbers, or with what a comparison found."""
    sides = [(call.tag(name), given(call, name)) for name in ("self", "other")]
    (_, x), (other, y) = sides if sides[0][0] and sides[0][0].from_image else sides[::-1]
    if other is None or not other.from_image:
        return x.scaled(y.low, y.high)
    return hull([y if x == TRUTH else x, ZERO]) if TRUTH in (x, y) else ANY


def _quotient(call: Call) -> Numbers:
    divisor, y = call.tag("other"), given(call, "other")
    if (divisor is not None and divisor.from_image) or not 0 < y.low * y.high < math.inf:
        return ANY
    x = given(call, "self").scaled(1 / y.high, 1 / y.low)
    how = {"floor": math.floor, "trunc": math.trunc}.get(call.arguments.get("rounding_mode"))
    return _round(x, 1.0, how) if how else x


SIGNS = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}


def _sum(call: Call) -> Numbers:
    """With stored numbers; or a straight-through estimator, which is what it estimates."""
    if (quantized := estimated(call)) is not None:
        return quantized.numbers
    images = [tag for tag in call.tags if tag.from_image]
    if len(images) != 1 or call.arguments.get("alpha", 1) != 1:
        return ANY
    names = zip(("self", "other"), SIGNS[call.name], strict=True)
    x, y = (given(call, name).scaled(sign) for name, sign in names)
    step = x.step or y.step
    kept = step if x.multiples_of(step) and y.multiples_of(step) else None
    return Numbers(x.low + y.low, x.high + y.high, kept)


def estimated(call: Call) -> Tag | None:
    """What a straight-through estimator (Bengio et al. 2013) stands for: q, if a call is the sum of
    x + (q - x) and q is quantized."""
    if call.name != "add" or call.arguments.get("alpha", 1) != 1:
        return None
    pair = [call.tag("self"), call.tag("other")]
    for x, difference in (pair, pair[::-1]):
        made = difference and difference.made_by
        if x and made and made.name in ("sub", "rsub") and made.arguments.get("alpha", 1) == 1:
            q, less = (made.tag(name) for name in ("self", "other")[:: SIGNS[made.name][0]])
            if q and less and less.origin is x.origin and (q.numbers.step or q.numbers.widest):
                return q
    return None


def _chosen(call: Call) -> Numbers:
    """One of two; where x > bound, the bound, else x, is a clamp."""
    condition, pair = call.tag("condition"), (call.tag("self"), call.tag("other"))
    x, y = given(call, "self"), given(call, "other")
    made = condition and condition.made_by
    if made and made.name in COMPARISONS and (tested := made.tag("self")):
        bound, above = given(made, "other"), made.name in ("gt", "ge")
        for tag, chosen, rest in ((pair[0], x, y), (pair[1], y, x)):
            if tag and tag.origin is tested.origin and rest == bound:
                return (larger if above == (tag is pair[0]) else smaller)(chosen, bound)
    return hull([x, y])


def _always(low: float, high: float, step: float | None = None) -> Callable[[Call], Numbers]:
    return lambda call: Numbers(low, high, step)


RULES: dict[str, Callable[[Call], Numbers]] = {
    **dict.fromkeys(LIMITS, _clamped),
    **dict.fromkeys(QUANTIZERS, _quantized),
    **dict.fromkeys(ROUNDINGS, _rounded),
    **dict.fromkeys(SIGNS, _sum),
    **dict.fromkeys((*COMPARISONS, "eq", "ne"), _always(0.0, 1.0, 1.0)),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "_softmax"), _always(0.0, 1.0)),
    **dict.fromkeys(("sign", "sgn"), _always(-1.0, 1.0, 1.0)),
    "tanh": _always(-1.0, 1.0),
    "maximum": lambda call: larger(given(call, "self"), given(call, "other")),
    "minimum": lambda call: smaller(given(call, "self"), given(call, "other")),
    "neg": lambda call: given(call, "self").scaled(-1),
    "mul": _product,
    "div": _quotient,
    "where": _chosen,
    "masked_fill": lambda call: hull([given(call, "self"), given(call, "value")]),
    "constant_pad_nd": lambda call: hull(
        [given(call, "self"), given(call, "value") if call.arguments.get("value") else ZERO]
    ),
    "fill": lambda call: given(call, "value"),
    "copy": lambda call: given(call, "src"),
    "_to_copy": _cast,
}


def numbers_of(call: Call, kind: str | None, operands: list[Tag]) -> Numbers:
    """Of a call's results; `operands`: tags of inputs whose values are needed."""
    if call.name in RULES:
        return RULES[call.name](call)
    if kind not in (None, "maxpool") or not (operands and call.outputs):
        return ANY
    return TRUTH if call.outputs[0].dtype == torch.bool else hull(map(_of_operand, operands))


def _of_operand(tag: Tag) -> Numbers:
    if tag.from_image:
        return tag.numbers
    return ZERO if tag.value is not None and not bool(tag.value.any()) else ANY


def identity(call: Call) -> dict[str, object]:
    """Fields of a result's tag that say which value it is, or how to find out."""
    if call.name in IDENTITIES and call.outputs[0].dtype == call.inputs[0].dtype:
        return {"origin": call.tags[0].origin, "made_by": call.tags[0].made_by}
    return {"made_by": call} if call.name in (*COMPARISONS, "sub", "rsub") else {}


def fields(call: Call, kind: str, extra: tuple[float, float], result: Numbers) -> dict[str, object]:
    """What a record says of quantization, given the numbers of its result."""
    operands = [tag.numbers for tag in call.tags if tag.from_image]
    bits, spared = [numbers.bits for numbers in operands], needless(call)
    bits = None if None in bits else max(bits)
    scaled = kind == "scale" and None not in (bits, result.bits)
    found = {"activation_bits": bits, "dequantizes": scaled or kind == "quantize"}
    if kind == "quantize" or any(numbers.step for numbers in operands):
        found["extra"] = extra[0] - spared, extra[1]
    else:
        found["needless"] = spared
    if kind == "quantize":  # switches and statistics are not for inference
        tags = [call.tag("scale")] + [call.tag("zero_point")] * bool(extra[1])
        found["stores"] = tuple(t for tag in tags if tag for t in tag.stores)
    return found | ({"kind": STRAIGHT_THROUGH} if estimated(call) else {})


def settle(trace: Trace) -> None:
    """Take back, in a trace's records, what a quantizer need not compute: the difference that a
    straight-through estimator adds, bounds that hold before a rounding anyway, and the product
    with its step where only layers read it, whose weights absorb it."""
    records, readers = trace.records, trace.consumers

    def found(i: int, *passed: str) -> set[str]:
        """Kinds of what reads a result, behind those that pass it on."""
        users = [(j, records[j].kind if j >= 0 else "output") for j in readers[i]]
        behind = (found(j, *passed) for j, kind in users if kind in passed)
        return {kind for _, kind in users if kind not in passed}.union(*behind)

    for i in reversed(range(len(records))):
        record = records[i]
        if record.operation in ("sub", "rsub") and found(i) == {STRAIGHT_THROUGH}:
            records[i] = record = replace(record, kind=STRAIGHT_THROUGH)
        saved = record.needless and record.needless * ("round" in found(i, "scale"))
        read_by = found(i, STRAIGHT_THROUGH, "maxpool") if record.dequantizes else ()
        saved += bool(read_by) and read_by <= {"conv", "linear"}
        if saved:
            records[i] = replace(record, extra=(record.extra[0] - saved, record.extra[1]))
