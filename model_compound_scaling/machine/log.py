"""Lines for people: on the console and in a run's folder."""

import os
import sys
import time
from pathlib import Path

from data.errors import printable
from model_compound_scaling.machine import place


class Log:
    """Lines of the first process to the console and, if there is a folder, to its `logfile.txt`.
    Neither a reader that went away nor a full disk ends the training that they tell of."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = folder and folder / "logfile.txt"

    def __call__(self, *lines: str) -> None:
        if not place.is_main():
            return
        lines = [printable(line) for line in lines]
        try:
            print(*lines, sep="\n")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not self.path:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{now} {line}\n" for line in lines)
        except OSError as error:
            print(printable(f"cannot write {self.path}: {error.strerror}"), file=sys.stderr)
            self.path = None


def say(line: str) -> None:
    """One line on stderr: what all processes find wrong before they meet, only the first says."""
    line = printable(line)
    if place.is_main():
        print(line, file=sys.stderr)
    elif place.world_size() > 1:
        print(f"process {place.rank()}: {line}", file=sys.stderr)
