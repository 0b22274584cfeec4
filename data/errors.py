"""Errors a user can cause and mend: one line on stderr and an exit code, never a traceback."""

import difflib
import importlib.util
import re
from collections.abc import Sequence


class UserError(ValueError):
    """Something in the command line or its files is wrong; the message names it and the fix."""

    exit_code = 2
    shared = False  # raised alike in all processes of a run: the first one says it


class DataError(UserError):
    """A data set is missing, empty or has an unreadable file."""

    exit_code = 4


# what would break a line of a log or steer a terminal: control characters, other ends of lines,
# marks that turn the direction of text, and the bytes that Python could not decode, also as repr
# has spelled them in the messages of others
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    r"|\\udc[89a-f][0-9a-f]"
)


def printable(text: object) -> str:
    """`text`, as of a file's name, in one line that any terminal shows: a newline as \\n, the byte
    E9 of a name that is not UTF-8 as \\xe9."""
    return UNPRINTABLE.sub(_escape, str(text))


def _escape(match: re.Match) -> str:
    if match[0].startswith("\\"):
        return rf"\x{match[0][-2:]}"
    code = ord(match[0])  # PEP 383: undecodable bytes are U+DC80 to U+DCFF
    return f"\\x{code - 0xDC00:x}" if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first three, and how many more there are."""
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def choose(flag: str, value: str, choices: Sequence[str]) -> None:
    """UserError, with the nearest choice, unless `value` is one of the choices."""
    if value in choices:
        return
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    hint = f" (did you mean {by_lower[near[0]]}?)" if near else ""
    raise UserError(f"unknown {flag} {value!r}: choose from {', '.join(choices)}{hint}")


def require_packages(what: str, *names: str, fix: str) -> None:
    """UserError if an optional package is missing that `what` names ("--onnx needs")."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{what} {', '.join(missing)}: {fix}")
