"""Kinds that depend on arguments: a function costs the same in every form that PyTorch has for it,
and the numbers in a call (`alpha=2`) cost what they would cost written out."""

from collections.abc import Callable

from model_scoring.tracing.aten_operations import UNKNOWN, Operation
from model_scoring.tracing.channel_rules import Call

Kind = tuple[str | None, tuple[float, float]]  # and further (mults, adds) per output element
NOTHING = (0.0, 0.0)


def _clamp(call: Call) -> Kind:
    """One bound or two; also `hardtanh`, whose bounds are never left out."""
    return "relu" if None in map(call.arguments.get, ("min", "max")) else "relu6", NOTHING


def _extreme(call: Call) -> Kind:
    """The larger or smaller of two; with a stored operand as ReLU."""
    return "compare" if all(tag.from_image for tag in call.tags) else "relu", NOTHING


def factor(number: object) -> int:
    """Products that a scalar of a call takes."""
    return int(number not in (None, 1, -1))


def _scaled(call: Call, number: str, *operands: str) -> int:
    """Products that a scalar takes which scales operands; of a stored one it becomes a part."""
    tags = [call.tag(name) for name in operands]
    ahead = any(tag is None or not tag.from_image for tag in tags)
    return 0 if ahead else factor(call.arguments.get(number))


def _sum(call: Call) -> Kind:
    scaled = "self" if call.name == "rsub" else "other"
    return "add", (_scaled(call, "alpha", scaled), 0)


def _product(call: Call) -> Kind:
    """A comparison's result selects, as `where` does; 1 / x is one division."""
    selects = any(tag.selects for tag in call.tags)
    return None if selects or call.caller.name == "__rdiv__" else "scale", NOTHING


def _product_and_sum(call: Call) -> Kind:
    return "scale", (_scaled(call, "value", "tensor1", "tensor2"), 1)


def multiplications(exponent: float) -> int:
    """Of a power: products by squaring, a root for each half, a division if it is negative;
    anything else is one function."""
    size = abs(exponent)
    if size not in (0.5, 1.5) and (size != int(size) or size > 64):
        return 1
    whole, half = int(size), size % 1 > 0
    products = max(whole.bit_length() - 1, 0) + max(whole.bit_count() - 1, 0)
    return products + half * (1 + (whole > 0)) + (exponent < 0)


def _power(call: Call) -> Kind:
    exponent = call.arguments.get("exponent")
    if not isinstance(exponent, int | float):
        return "function", NOTHING
    mults = multiplications(exponent)
    return ("function", (mults - 1, 0)) if mults else (None, NOTHING)


def _length(call: Call) -> Kind:
    """Only of squares; others have no rule."""
    return "length" if call.arguments.get("ord", 2) == 2 else UNKNOWN, NOTHING


KINDS: dict[str, Callable[[Call], Kind]] = {
    "clamp": _clamp,
    **dict.fromkeys(("maximum", "minimum"), _extreme),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    "mul": _product,
    **dict.fromkeys(("addcmul", "addcdiv"), _product_and_sum),
    "pow": _power,
    "linalg_vector_norm": _length,
}


def kind_of(call: Call, operation: Operation) -> Kind:
    """Kind of a call of an operation, and what its scalars cost beside it."""
    if operation.kind is not None and call.name in KINDS:
        return KINDS[call.name](call)
    return operation.kind, operation.extra
