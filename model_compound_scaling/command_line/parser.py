"""argparse with one-line errors and defaults in the help."""

import argparse
import difflib
import os
from pathlib import Path
from typing import NoReturn

from model_compound_scaling.machine.log import say


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds defaults as one would type them; a default of None or False is in the help's words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, (action.help or "").replace("%", "%%")
        silent = default is None or default is False or default is argparse.SUPPRESS
        if silent or not action.option_strings:
            return text
        if isinstance(default, Path):
            default = os.path.relpath(default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default: {shown})".lstrip()


class Parser(argparse.ArgumentParser):
    """One-line errors that name the flag and the nearest valid one; no abbreviations."""

    def __init__(self, *, prog: str, required: str = "", description: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {required} [flags]".replace("  ", " "),
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")]
        if "unrecognized" in message and unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            message = f"unknown flag {' '.join(unknown)}"
            message += f"; did you mean {close[0]}?" if close else "; --help lists all flags"
        say(f"{self.prog}: error: {message}")
        self.exit(2)
