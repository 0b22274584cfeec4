"""Signals: finish the step, save, and leave with an exit code that says why. SIGTERM and SIGUSR1
are a scheduler's: exit code 75, "run me again". SIGINT is a person's: 130."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 128 + signal.SIGINT}

_first: int = 0  # the signal that came first; later ones change nothing
_deferred = False


class Stopped(BaseException):
    """A signal ended the work; no Exception, so that nothing but the command line catches it."""

    def __init__(self, number: int, what: str = "nothing was to be saved") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {what}")
        self.exit_code = EXIT_CODES[signal.Signals(number)]


def _handle(number: int, frame: FrameType | None) -> None:
    global _first
    if not _first:
        _first = number
        if not _deferred:
            raise Stopped(number)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, the three signals raise Stopped."""
    global _first, _deferred
    _first, _deferred = 0, False
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be told about signals
        return
    before = {number: signal.signal(number, _handle) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, signals wait until someone asks `received`; for work that must not be torn apart."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


def defer() -> None:
    """From now on signals wait until someone asks, which is after the next step. For one process
    of several: stopping alone, it would leave the others waiting."""
    global _deferred
    _deferred = True


def received() -> int:
    """The signal that came to this process, 0 if none did."""
    return _first


def ignore_in_worker(_: int) -> None:
    """For processes that read images: the one they work for decides when they end."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
