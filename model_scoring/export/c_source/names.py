"""Names of the two files, and of what is in them. Without torch: flags are checked with these."""

import re
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
