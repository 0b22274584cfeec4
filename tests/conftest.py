"""Shared fixtures: real files, where they are at hand; checkpoints that tell their saves apart."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import MICRONET, save_network, save_tree, scale, ternary_micronet
from tqdm import tqdm

from model_compound_scaling.checkpoints.atomic_save import previous_path, read_file
from model_compound_scaling.checkpoints.errors import CheckpointError

# on networks this small, more threads only wait for each other: here, and in started processes
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# the first backward pass decides whether autograd needs threads, after which nothing may fork; it
# would after torch.export or torch.compile, which make themselves known as devices
torch.zeros(1, requires_grad=True).sum().backward()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="the slow tests, too")
    parser.addoption(
        "--full", action="store_true", help="the slow tests, and all random ones' full counts"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (config.option.slow or config.option.full):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


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
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with 24 and 8 PNG files of 16x16 pixels in each of dark/ and light/."""
    return save_tree(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of stage 1, two epochs on `images`: to be read, not to be changed."""
    output = tmp_path_factory.mktemp("trained")
    assert scale(images, output) == 0
    return output


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """net.pt with `ternary_micronet()`, which says how its images are prepared."""
    data = {"mean": [0.5, 0.5, 0.4], "std": [0.2, 0.2, 0.3]}
    data["class_names"] = [f"class {i}" for i in range(10)]
    return save_network(tmp_path / "net.pt", ternary_micronet(), MICRONET, **data)


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
            # tqdm's own is one semaphore for all: who is killed while holding it would stop us all
            tqdm.set_lock(threading.RLock())
            code = 1
            try:
                body()
                code = 0
            except BaseException:
                traceback.print_exc()
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
