"""Saves that are killed or fail at every single call: old or new, never neither."""

import builtins
import errno
import itertools
import os
import random

import pytest
import torch

from model_compound_scaling.checkpoints import atomic_save
from model_compound_scaling.checkpoints.atomic_save import (
    has_generation,
    read_file,
    read_generation,
    write_file,
    write_generation,
)
from model_compound_scaling.checkpoints.errors import DiskError

pytestmark = pytest.mark.faults


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Killed processes lose nothing that the kernel has."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Saboteur:
    """Takes the place of `os` and `open` in the storage module and fails at the k-th call.

    As a kill it fails at every later call too, so that no cleaning up takes place.
    """

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, 0

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.calls > self.at and isinstance(self.error, Killed)):
            raise self.error

    def __getattr__(self, name):
        real = getattr(os, name)
        if not callable(real):
            return real

        def call(*args):
            self.tick()
            return real(*args)

        return call

    def open_file(self, path, mode):
        self.tick()
        file = builtins.open(path, mode)  # noqa: SIM115  (the caller closes it)
        return _SabotagedFile(file, self) if "x" in mode else file


class _SabotagedFile:
    def __init__(self, file, saboteur) -> None:
        self.file, self.saboteur = file, saboteur

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, block):
        self.file.write(block[: len(block) // 2])
        self.saboteur.tick()
        return self.file.write(block[len(block) // 2 :])


def attempt(write, content, path, monkeypatch, *, at, error, links):
    """Save with a failure at call `at`; "done", "failed", or "untouched" if there was no such
    call."""
    saboteur = Saboteur(at, error)

    def no_links(*_):
        saboteur.tick()
        raise OSError(errno.EPERM, "no links here")

    if not links:
        saboteur.link = no_links
    with monkeypatch.context() as patch:
        patch.setattr(atomic_save, "os", saboteur)
        patch.setattr(atomic_save, "open", saboteur.open_file, raising=False)
        try:
            write(content, path)
        except (Killed, DiskError):
            return "failed"
    return "done" if saboteur.calls >= at else "untouched"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("write", [write_file, write_generation])
def test_a_kill_at_any_call_leaves_old_or_new(
    tmp_path, monkeypatch, make_content, number_of, numbers, write, before, links
):
    failures = 0
    for at in itertools.count(1):
        path = tmp_path / str(at) / "last.pt"
        path.parent.mkdir()
        for number in range(1, before + 1):
            write(make_content(number), path)
        outcome = attempt(
            write, make_content(9), path, monkeypatch, at=at, error=Killed(), links=links
        )
        if outcome == "untouched":
            break
        failures += outcome == "failed"
        if before or has_generation(path):
            content, _, _ = read_generation(path)
            assert number_of(content) in (before, 9), at
        if write is write_generation and before == 2:  # a second one is good as well
            assert len({n for n in numbers(path) if n in (1, 2, 9)}) == 2, at
        # the next save finishes what was left, and the one after it
        write(make_content(10), path)
        assert number_of(read_file(path)) == 10
        assert not [file for file in path.parent.iterdir() if file.name.startswith(".")], at
        write(make_content(11), path)
        assert number_of(read_generation(path)[0]) == 11
    assert failures > 15


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_kill_after_kill(tmp_path, monkeypatch, make_content, number_of, kill):
    """Every save is killed, at random calls, in one folder: the newest whole one is there."""
    rng = random.Random(kill)
    path = tmp_path / "last.pt"
    write_generation(make_content(0), path)
    newest = 0
    for number in range(1, 120):
        at = rng.randint(1, 120)
        options = {"at": at, "error": Killed(), "links": rng.random() < 0.7}
        outcome = attempt(write_generation, make_content(number), path, monkeypatch, **options)
        found = number_of(read_generation(path)[0])
        assert found in ((newest, number) if outcome == "failed" else (number,))
        newest = found
    assert newest > 5


@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("write", [write_file, write_generation])
def test_an_error_at_any_call_leaves_old_or_new(
    tmp_path, monkeypatch, make_content, number_of, write, before
):
    failures = late = 0
    for at in itertools.count(1):
        path = tmp_path / str(at) / "last.pt"
        path.parent.mkdir()
        for number in range(1, before + 1):
            write(make_content(number), path)
        error = OSError(errno.ENOSPC, "No space left on device")
        outcome = attempt(write, make_content(9), path, monkeypatch, at=at, error=error, links=True)
        if outcome == "untouched":
            break
        expected = before if outcome == "failed" else 9
        if outcome == "failed" and number_on_disk(path) == 9:
            expected = 9  # failed when syncing the folder after the rename, or in what follows
            late += 1
        failures += outcome == "failed" and expected != 9
        assert path.exists() == bool(expected), at
        if expected:
            assert number_of(read_file(path)) == expected, at
        assert not list(path.parent.glob(".*")), at
    assert failures > 8
    syncing = 3  # calls: open, fsync, close
    assert late == (syncing if write is write_file or not before else 2 * syncing + 1)


def number_on_disk(path):
    return torch.load(path, weights_only=True)["number"] if path.exists() else None
