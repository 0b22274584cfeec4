"""Errors a user can cause and mend: one line on stderr and an exit code, never a traceback."""

import difflib
import importlib.util
from collections.abc import Sequence


class UserError(ValueError):
    """Something in the command line or its files is wrong; the message names it and the fix."""

    exit_code = 2
    shared = False  # raised alike in all processes of a run: the first one says it


class DataError(UserError):
    """A data set is missing, empty or has an unreadable file."""

    exit_code = 4


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
