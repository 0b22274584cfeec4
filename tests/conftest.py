"""Shared fixtures: the real files, where they are at hand."""

import os
from pathlib import Path

import pytest
import torch

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
