"""What a flag's value may be: from its text to a number, or a one-line complaint."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from data.errors import UserError, printable
from model_compound_scaling.runs.save_interval import Interval


def _number(name: str, parse: type, valid: Callable[[float], bool], complaint: str) -> Callable:
    def from_text(value: str) -> float:
        number = parse(value)
        if not valid(number):
            raise argparse.ArgumentTypeError(f"{value} {complaint}")
        return number

    from_text.__name__ = name  # argparse says "invalid positive value: 'x'"
    return from_text


# fmt: off
positive = _number("positive", int, lambda n: n >= 1, "is not at least 1")
natural = _number("natural", int, lambda n: 0 <= n < 2**32, f"is not between 0 and {2**32 - 1}")
non_negative = _number("non_negative", float, lambda x: 0 <= x < 1e38,  # in single precision
                       "is not a number of at least 0")
multiplier = _number("multiplier", float, lambda x: 0 < x <= 100, "is not above 0 and at most 100")
exponent = _number("exponent", float, lambda x: 0 <= x <= 100, "is not between 0 and 100")
percent = _number("percent", float, lambda x: 0 <= x <= 100, "is not a percentage")
decay = _number("decay", float, lambda x: 0 <= x < 1, "is not from 0 to below 1")
share = _number("share", float, lambda x: 0 <= x <= 1, "is not between 0 and 1")
# fmt: on


def refused(reason: str) -> Callable[[str], object]:
    """Of a flag that another script has: why this one has not."""

    def complain(value: str) -> object:
        raise argparse.ArgumentTypeError(reason)

    return complain


def grid_value(value: str) -> float | str:
    """A multiplier, or the word auto."""
    return value if value == "auto" else multiplier(value)


def shard(value: str) -> str:
    """i/n with 1 <= i <= n, as it was written."""
    match = re.fullmatch(r"(\d+)/(\d+)", value)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{value} is not I/N with I from 1 to N, as in 1/4")
    return value


def interval(value: str) -> str:
    """`Nmin` or `Nsteps`, as it was written."""
    Interval.parse(value)
    return value


def regex(value: str) -> str:
    """A regular expression, as it was written."""
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no regular expression: {error}") from None
    return value


def folder(value: str) -> Path:
    """A folder; `~` is the user's home, also in --flag=~/x, where the shell leaves it alone."""
    return Path(value).expanduser()


def boolean(value: str) -> bool:
    """`True` or `False`, as scripts write it."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in words:
        raise argparse.ArgumentTypeError(f"{value} is neither True nor False")
    return words[value.lower()]


def different_files(named: Mapping[str, Path]) -> list[Path]:
    """The files that flags name, resolved. UserError for a folder, or a file that two name."""
    by_path: dict[Path, str] = {}
    for flag, path in named.items():
        if path.is_dir():
            raise UserError(f"{printable(path)} is a folder: name a file in it")
        if (other := by_path.setdefault(path.resolve(), flag)) != flag:
            raise UserError(f"{other} and {flag} need different files, not both {printable(path)}")
    return list(by_path)
