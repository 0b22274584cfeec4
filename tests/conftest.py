"""Shared fixtures: real files, where they are at hand; checkpoints that tell their saves apart."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model_compound_scaling.checkpoints.atomic_save import previous_path, read_file
from model_compound_scaling.checkpoints.errors import CheckpointError

torch.set_num_threads(1)  # on networks this small, more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="random tests with their full counts (minutes)"
    )


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long counts are wanted."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def real_files() -> Path:
    """Folder with released checkpoints and real images, named by EFFICIENTCNNS_TEST_DATA."""
    folder = os.environ.get("EFFICIENTCNNS_TEST_DATA")
    if not folder:
        pytest.skip("EFFICIENTCNNS_TEST_DATA is not set: no released checkpoints, no real images")
    return Path(folder)


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
