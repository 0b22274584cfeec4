"""What the fault tests share: checkpoints whose content tells which save they are from."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data.errors import CheckpointError
from model_compound_scaling.storage import previous_path, read_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here are marked, so that `-m "not faults"` leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def make_content() -> Callable[[int], dict]:
    """number -> a checkpoint's content, with that number in every part of it."""

    def make(number: int) -> dict:
        state = {f"layer{i}.weight": torch.full((8, 8), number + i / 8) for i in range(4)}
        optimizer = {"state": {0: {"momentum_buffer": torch.full((64,), float(number))}}}
        return {"number": number, "state_dict": state, "resume": {"optimizer": optimizer}}

    return make


@pytest.fixture(scope="session")
def number_of() -> Callable[[dict], int]:
    """content -> its number; fails if parts of it are from different saves."""

    def number(content: dict) -> int:
        result = content["number"]
        for i in range(4):
            assert (content["state_dict"][f"layer{i}.weight"] == result + i / 8).all()
        buffer = content["resume"]["optimizer"]["state"][0]["momentum_buffer"]
        assert (buffer == result).all()
        return result

    return number


@pytest.fixture(scope="session")
def numbers(number_of: Callable[[dict], int]) -> Callable[[Path], list[int | None]]:
    """Path -> the numbers of its generations, newest first, None for one that is not good."""

    def number(file: Path) -> int | None:
        try:
            return number_of(read_file(file))
        except CheckpointError:
            return None

    return lambda path: [number(file) for file in (path, previous_path(path))]


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Run a function in a child process; its id. Children left over are killed."""
    children = []

    def start(body: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                body()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
        return child

    yield start
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
