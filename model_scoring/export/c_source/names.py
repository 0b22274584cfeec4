"""Names of the two files, of what is in them, and of the compiler. Without torch: flags are checked
with these."""

import os
import re
import shlex
import shutil
from pathlib import Path

from data.errors import UserError, printable


def header_path(path: Path) -> Path:
    """The header beside a C file. UserError if the file's name does not end in .c."""
    if path.suffix != ".c":
        raise UserError(f"--c-source {printable(path)}: name a file that ends in .c")
    return path.with_suffix(".h")


def identifier(stem: str) -> str:
    """A file's stem as the prefix of C names."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII).lower()
    return name if name and not name[0].isdigit() else f"net_{name}"


class NoCompiler(UserError):
    """There is none, by the name that CC says, or `cc`."""


def compiler() -> list[str]:
    """The command. Raises NoCompiler."""
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        raise NoCompiler(f"CC: {error}") from None
    if shutil.which(command[0]) is None:
        raise NoCompiler(f"there is no C compiler {printable(command[0])!r}: install one or set CC")
    return command
