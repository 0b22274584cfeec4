"""Kinds that depend on arguments: a function costs the same in every form that PyTorch has for it,
and the numbers in a call (`alpha=2`) cost what they would cost written out."""

import math
from collections.abc import Callable

from model_scoring.tracing.aten_operations import UNKNOWN, Operation
from model_scoring.tracing.channel_rules import Call
from model_scoring.tracing.number_ranges import QUANTIZERS, ZERO, disabled, given

Extra = tuple[float, float]  # further (mults, adds) per output element


def factor(number: object) -> int:
    """Products that a scalar of a call takes."""
    return int(number not in (None, 1, -1))


def _scaled(call: Call, number: str, *operands: str) -> int:
    """Products that a scalar takes which scales operands; of a stored one it becomes a part."""
    tags = [call.tag(name) for name in operands]
    ahead = any(tag is None or not tag.from_image for tag in tags)
    return 0 if ahead else factor(call.arguments.get(number))


def _is(call: Call, argument: str, *numbers: float) -> bool:
    """Whether an argument is one of these numbers everywhere, by the code: nothing that is
    stored."""
    given, tag = call.arguments.get(argument), call.tag(argument)
    if tag is None:
        return isinstance(given, int | float) and given in numbers
    known = not tag.from_image and not tag.stores and tag.value is not None
    return known and any(bool((tag.value == number).all()) for number in numbers)


def _sum(call: Call) -> str | None:
    """x + 0 is x, and 0 - x costs what -x does."""
    first, scaled = ("other", "self") if call.name == "rsub" else ("self", "other")
    if _is(call, scaled, 0):
        return None
    if _is(call, first, 0):
        same = call.name == "add" and call.arguments.get("alpha", 1) == 1
        return None if same else "sign"
    return "add"


def _product(call: Call, *factors: str) -> str | None:
    """A comparison's result selects, as `where` does; 1 / x is one division; x * 1 is x, and x * -1
    costs what -x does."""
    selects, factors = any(tag.selects for tag in call.tags), factors or ("self", "other")
    if selects or call.caller.name == "__rdiv__" or any(_is(call, f, 1) for f in factors):
        return None
    return "sign" if any(_is(call, f, -1) for f in factors) else "scale"


def _quotient(call: Call) -> str | None:
    """As a product, but for one that is rounded."""
    return "scale" if call.arguments.get("rounding_mode") else _product(call, "other")


def _limits(call: Call, low: str, high: str, *default: float) -> str | None:
    """One bound or two; infinite ones are none."""
    given = [call.arguments.get(n, d) for n, d in zip((low, high), default, strict=True)]
    pairs = zip((low, high), given, (-math.inf, math.inf), strict=True)
    bounds = sum(not (number is None or _is(call, n, end)) for n, number, end in pairs)
    return (None, "relu", "relu6")[bounds]


def _leak(call: Call, *slopes: str, default: float) -> str | None:
    """A slope of 0 leaves ReLU, one of 1 nothing."""
    found = {call.arguments.get(slope, default) for slope in slopes}
    return {0: "relu", 1: None}.get(*found, "leaky_relu") if len(found) == 1 else "leaky_relu"


def multiplications(exponent: object) -> int:
    """Of a power: products by squaring, a root for each half, a division if it is negative;
    anything else is one function."""
    size = abs(exponent) if isinstance(exponent, int | float) else math.inf
    if size not in (0.5, 1.5) and (size > 64 or size != int(size)):
        return 1
    whole, half = int(size), size % 1 > 0
    products = max(whole.bit_length() - 1, 0) + max(whole.bit_count() - 1, 0)
    return products + half * (1 + (whole > 0)) + (exponent < 0)


def _power(call: Call) -> int:
    return multiplications(call.arguments.get("exponent"))


# fmt: off
KINDS: dict[str, Callable[[Call], str | None]] = {
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), lambda call: (
        _limits(call, "min", "max", None, None))),
    "hardtanh": lambda call: _limits(call, "min_val", "max_val", -1, 1),
    "leaky_relu": lambda call: _leak(call, "negative_slope", default=0.01),
    "rrelu_with_noise": lambda call: _leak(call, "lower", "upper", default=None),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    "div": _quotient,
    # the larger or smaller of two; with a stored operand as ReLU
    **dict.fromkeys(("maximum", "minimum"), lambda call: (
        "compare" if all(tag.from_image for tag in call.tags) else "relu")),
    "mul": _product,
    "pow": lambda call: "function" if _power(call) else None,
    "linalg_vector_norm": lambda call: (  # only of squares; others have no rule
        "length" if call.arguments.get("ord", 2) == 2 else UNKNOWN),
    **dict.fromkeys(QUANTIZERS, lambda call: None if disabled(call) else "quantize"),
}
EXTRAS: dict[str, Callable[[Call], Extra]] = {
    **dict.fromkeys(("add", "sub"), lambda call: (_scaled(call, "alpha", "other"), 0)),
    "rsub": lambda call: (_scaled(call, "alpha", "self"), 0),
    **dict.fromkeys(("addcmul", "addcdiv"), lambda call: (
        _scaled(call, "value", "tensor1", "tensor2"), int(not _is(call, "self", 0)))),
    "pow": lambda call: (_power(call) - 1, 0),
    **dict.fromkeys(QUANTIZERS, lambda call: (0, int(given(call, "zero_point") != ZERO))),
}
# fmt: on


def kind_of(call: Call, operation: Operation) -> tuple[str | None, Extra]:
    """Kind of a call of an operation, and what its scalars cost beside it."""
    kind, extra = KINDS.get(call.name), EXTRAS.get(call.name)
    return kind(call) if kind else operation.kind, extra(call) if extra else operation.extra
