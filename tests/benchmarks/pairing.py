"""Two ways to do the same work, timed in turn: their ratio holds on a machine that is noisy."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Wall time of one call, from the end of the work before to the end of this."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def paired(
    works: tuple[Callable[[], object], Callable[[], object]],
    *,
    device: torch.device,
    pairs: int,
    repeats: int = 1,
) -> tuple[float, float, tuple[float, float, float]]:
    """Median seconds of both, and lower quartile, median and upper quartile of second / first."""
    for work in works:
        seconds(work, device, 2)
    times = []
    for i in range(pairs):  # in turn, and in turn who is first: the second runs warmer
        order = (0, 1) if i % 2 == 0 else (1, 0)
        pair = {j: seconds(works[j], device, repeats) for j in order}
        times.append((pair[0], pair[1]))
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    low, middle, high = statistics.quantiles([b / a for a, b in times], n=4)
    return first, second, (low, middle, high)
