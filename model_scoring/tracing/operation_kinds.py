"""Kinds that depend on arguments: a function costs the same in every form that PyTorch has for it,
and the numbers in a call (`alpha=2`) cost what they would cost written out."""

import math
from collections.abc import Callable

from model_scoring.tracing.aten_operations import UNKNOWN, Operation
from model_scoring.tracing.channel_rules import Call

Extra = tuple[float, float]  # further (mults, adds) per output element


def factor(number: object) -> int:
    """Products that a scalar of a call takes."""
    return int(number not in (None, 1, -1))


def _scaled(call: Call, number: str, *operands: str) -> int:
    """Products that a scalar takes which scales operands; of a stored one it becomes a part."""
    tags = [call.tag(name) for name in operands]
    ahead = any(tag is None or not tag.from_image for tag in tags)
    return 0 if ahead else factor(call.arguments.get(number))


def _product(call: Call) -> str | None:
    """A comparison's result selects, as `where` does; 1 / x is one division."""
    selects = any(tag.selects for tag in call.tags)
    return None if selects or call.caller.name == "__rdiv__" else "scale"


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
    # one bound or two; also `hardtanh`, whose bounds are never left out
    "clamp": lambda call: "relu" if None in map(call.arguments.get, ("min", "max")) else "relu6",
    # the larger or smaller of two; with a stored operand as ReLU
    **dict.fromkeys(("maximum", "minimum"), lambda call: (
        "compare" if all(tag.from_image for tag in call.tags) else "relu")),
    "mul": _product,
    "pow": lambda call: "function" if _power(call) else None,
    "linalg_vector_norm": lambda call: (  # only of squares; others have no rule
        "length" if call.arguments.get("ord", 2) == 2 else UNKNOWN),
}
EXTRAS: dict[str, Callable[[Call], Extra]] = {
    **dict.fromkeys(("add", "sub"), lambda call: (_scaled(call, "alpha", "other"), 0)),
    "rsub": lambda call: (_scaled(call, "alpha", "self"), 0),
    **dict.fromkeys(("addcmul", "addcdiv"), lambda call: (
        _scaled(call, "value", "tensor1", "tensor2"), 1)),
    "pow": lambda call: (_power(call) - 1, 0),
}
# fmt: on


def kind_of(call: Call, operation: Operation) -> tuple[str | None, Extra]:
    """Kind of a call of an operation, and what its scalars cost beside it."""
    kind, extra = KINDS.get(call.name), EXTRAS.get(call.name)
    return kind(call) if kind else operation.kind, extra(call) if extra else operation.extra
