"""Milliseconds per image: PyTorch, onnxruntime and the C file in turn, on one thread."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from data.errors import UserError, printable
from model_compound_scaling.command_line.tables import aligned
from model_scoring.export.c_source.compiling import Compiled

RUNS, SECONDS = 301, 10.0  # timed passes of each, and when to be content with fewer
C = "C"
HEADER = ("", "minimum", "quartile", "median", "quartile", f"/ {C}, minimum", f"/ {C}, median")

Calls = dict[str, Callable[[], object]]


def interleaved(calls: Calls, *, runs: int = RUNS, limit: float = SECONDS) -> dict[str, list]:
    """Milliseconds of each pass. All take turns in random order: whatever else the machine does,
    however regularly, slows them alike."""
    times, order = {name: [] for name in calls}, random.Random(0)
    for call in calls.values():
        call()
    start = time.perf_counter()
    while (turns := len(next(iter(times.values())))) < runs and (
        turns < 2 or time.perf_counter() - start < limit
    ):
        for name in order.sample(list(calls), len(calls)):
            begin = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return times


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, without gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def in_onnxruntime(content: bytes, image: np.ndarray) -> Callable[[], object]:
    """A pass of a serialized ONNX model, on one thread. Raises ImportError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, inputs)


def runtimes(network: nn.Module, library: Compiled, image: torch.Tensor) -> tuple[Calls, list[str]]:
    """A pass of each runtime that is here, and what to say of the others."""
    calls, missing = {f"PyTorch {torch.__version__}": lambda: network(image)}, []
    try:
        import onnxruntime

        from model_scoring.export import onnx_file

        content = onnx_file.float_model(network, tuple(image.shape[1:]), 17).SerializeToString()
        calls[f"onnxruntime {onnxruntime.__version__}"] = in_onnxruntime(content, image.numpy())
    except ImportError:
        missing = ["onnxruntime: not installed (pip install -r requirements-export.txt)"]
    except UserError as error:
        missing = [f"onnxruntime: {printable(error)}"]
    return calls | {C: library.caller(image[0].numpy())}, missing


def spread(times: Sequence[float]) -> dict[str, float]:
    """Minimum and quartiles of milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"minimum": min(times), "lower": low, "median": middle, "upper": high}


def measure(network: nn.Module, library: Compiled) -> tuple[dict, list[str]]:
    """What --latency finds: for JSON, in milliseconds and bytes, and as lines."""
    image = torch.randn(1, *library.source.shape, generator=torch.Generator().manual_seed(0))
    with one_thread():
        calls, missing = runtimes(network, library, image)
        spreads = {name: spread(times) for name, times in interleaved(calls).items()}
    c, rows = spreads[C], [list(HEADER)]
    for name, found in spreads.items():
        ratios = (found[key] / c[key] for key in ("minimum", "median"))
        rows.append([name, *(f"{v:.3f}" for v in found.values()), *(f"{r:.2f}" for r in ratios)])
    source = library.source
    sizes = {"weight_bytes": source.weight_bytes, "arena_bytes": source.arena_bytes}
    sizes["code_bytes"] = library.library_bytes - source.weight_bytes
    lines = ["", "milliseconds per image: CPU, one thread, batch 1, in turn", *aligned(rows)]
    said = "C library: {code_bytes:,} bytes of code, {weight_bytes:,} of weights, {arena_bytes:,} "
    lines += [said.format(**sizes) + "of arena", *missing]
    return {"milliseconds": spreads, **sizes, "missing": missing}, lines
