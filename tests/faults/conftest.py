"""What the fault tests share: checkpoints whose content tells which save they are from."""

import os
import signal
from collections.abc import Callable

import pytest
import torch


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


@pytest.fixture
def fork() -> Callable[[Callable[[], None]], int]:
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
