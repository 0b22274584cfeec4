"""argparse with one-line errors, defaults in the help, and flags that know what they change."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from model_compound_scaling.machine.log import say

if TYPE_CHECKING:
    from model_compound_scaling.runs import Configuration

SWITCH, ON_OFF = "store_true", argparse.BooleanOptionalAction  # kinds of flags without a value
Kind = str | type[argparse.Action] | Sequence | Callable[[str], object] | None


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds defaults as one would type them; a default of None or False is in the help's words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, (action.help or "").replace("%", "%%")
        if default is None or default is False or default is argparse.SUPPRESS:
            return text
        if isinstance(default, Path):
            default = os.path.relpath(default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default: {shown})".lstrip()


class Parser(argparse.ArgumentParser):
    """One-line errors that name the flag and the nearest valid one; no abbreviations."""

    def __init__(self, *, prog: str, required: str = "", description: str | None = None) -> None:
        usage = f"{prog} {required} [flags]".replace("  ", " ")
        super().__init__(prog, usage, description, formatter_class=_Help, allow_abbrev=False)
        self.given: Sequence[str] = ()
        self.presets: dict[str, dict] = {}  # value of --recipe -> other defaults

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """What a preset says are defaults: flags that are given win, wherever they stand."""
        self.given = sys.argv[1:] if args is None else args
        found = super().parse_args(args, namespace)
        preset = self.presets.get(getattr(found, "recipe", None), {})
        plain = {name: self.get_default(name) for name in preset}
        self.set_defaults(**preset)
        try:
            return super().parse_args(args, namespace) if preset else found
        finally:
            self.set_defaults(**plain)

    def section(self, title: str) -> Callable[..., None]:
        """`flag` for a group of flags that has this title in the help."""
        return partial(flag, self.add_argument_group(title))

    def configuration(self, values: dict) -> "Configuration":
        """What a run is asked for: its flags' values, and others."""
        from model_compound_scaling.runs import Configuration

        incidental = (a.dest for a in self._actions if getattr(a, "incidental", False))
        defaults = {a.dest: a.default for a in self._actions}
        return Configuration(values, frozenset(incidental), defaults)

    def error(self, message: str) -> NoReturn:
        words, known = [], self._option_string_actions
        if "unrecognized" in message:
            words = message.split()
        elif "are required" in message:  # the required one may be mistyped
            words = self.given
        unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, n=1)
            message = f"unknown flag {' '.join(unknown)}"
            message += f"; did you mean {close[0]}?" if close else "; --help lists all flags"
        say(f"{self.prog}: error: {message}")
        self.exit(2)


def flag(  # one row of a table: the columns are the group, the flag, and what argparse calls them
    group: argparse._ActionsContainer,
    names: str,
    kind: Kind,
    default: object,
    metavar: str | tuple[str, ...] | None,
    help: str,
    *,
    incidental: bool = False,
    **more: object,
) -> None:
    """Add a flag, `names` with spaces between them. `kind`: the values to choose from, SWITCH or
    ON_OFF or another action, what makes a value of the flag's text, or None for the text itself. An
    `incidental` flag changes no result: runs that differ only in such flags are the same run."""
    if isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, argparse.Action)):
        more["action"] = kind
    elif isinstance(kind, Sequence):
        more |= {"choices": kind, "type": type(kind[0])}
    elif kind is not None:
        more["type"] = kind
    if metavar is not None:  # which switches do not take
        more["metavar"] = metavar
    action = group.add_argument(*names.split(), default=default, help=help, **more)
    action.incidental = incidental
