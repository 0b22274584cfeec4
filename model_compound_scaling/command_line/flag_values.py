"""What a flag's value may be: from its text to a number, or a one-line complaint."""

import argparse
import re
from pathlib import Path

from model_compound_scaling.runs.save_interval import Interval


def positive(value: str) -> int:
    """An integer of at least 1."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return number


def natural(value: str) -> int:
    """An integer from 0 to 2^32 - 1."""
    number = int(value)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and {2**32 - 1}")
    return number


def non_negative(value: str) -> float:
    """A number of at least 0 that single precision holds."""
    number = float(value)
    if not 0 <= number < 1e38:
        raise argparse.ArgumentTypeError(f"{value} is not a number of at least 0")
    return number


def multiplier(value: str) -> float:
    """A number above 0, at most 100."""
    number = float(value)
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 100")
    return number


def exponent(value: str) -> float:
    """A number from 0 to 100."""
    number = float(value)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 100")
    return number


def percent(value: str) -> float:
    """A number from 0 to 100."""
    number = float(value)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not a percentage")
    return number


def decay(value: str) -> float:
    """A number from 0 to below 1."""
    number = float(value)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to below 1")
    return number


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
    except re.error as error:
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
