"""What a GPU makes of both training stages, as a table for docs/benchmarks.md: images a second of
the training loop beside the bare step, in each precision, with channels last and compiled; waits
for the device; peak memory; what EC2T and a teacher add to a step; augmentation; DDP over NCCL in
one process.

    python tests/benchmarks/gpu.py --json gpu.json     # at most 9 minutes
    python tests/benchmarks/gpu.py --no-cuda           # the same code on a CPU, tiny

bare: forward, backward and optimizer on one batch that lies on the device; SGD in stage 1, Adam in
stage 2, with no quantization. Both take turns, and what counts is the median of their ratios.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.batches import Batch, CachedLoader
from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.machine import choose_device, for_processes, lay_out
from model_compound_scaling.machine.devices import make_deterministic
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.logits import Logits
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.runs.environment import environment
from model_compound_scaling.training.loop import Progress, train_epoch
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.recipe import AMP, Recipe
from model_compound_scaling.training.step import TrainStep
from model_quantization.ec2t import Ternarizer
from model_quantization.layer_selection import ternarized_names
from model_quantization.two_phases import make_optimizer
from tests.benchmarks import ec2t_step
from tests.benchmarks.pairing import paired, seconds
from tests.benchmarks.training import SGD, cached_loader

CLASSES = 100
LEAST_SHARE = 0.9  # of the bare step's speed
MOST = {"EC2T": 1.05, "distilled": 1.03, "EC2T, 4-bit inputs": 1.25}  # times what it is added to
# name -> whether TF32 is allowed (PyTorch allows it to convolutions by itself), amp
PRECISIONS = {"fp32": (False, "off"), "tf32": (True, "off"), "bf16": (True, "bf16")}


@dataclass(frozen=True)
class Mode:
    """How a step computes."""

    precision: str
    channels_last: bool = False
    compile: bool = False

    @property
    def recipe(self) -> Recipe:
        """What makes both stages compute so; all but TF32, which is PyTorch's own switch."""
        amp = PRECISIONS[self.precision][1]
        return Recipe(amp=amp, channels_last=self.channels_last, compile=self.compile)

    def __str__(self) -> str:
        words = [self.precision, "channels last" * self.channels_last, "compiled" * self.compile]
        return ", ".join(filter(None, words))


@dataclass(frozen=True)
class Work:
    """What is measured, and how long."""

    device: torch.device
    depth: float
    width: float
    batch: int
    batches: int  # a measurement, of which there are `pairs` of two
    pairs: int
    cases: tuple[tuple[str, int, int], ...]  # of ec2t_step: network, classes, batch

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        shape = scaled_shape("cifar_micronet", depth=self.depth, width=self.width)
        return build(NetworkSpec("cifar_micronet", CLASSES, shape))

    def loader(self) -> CachedLoader:
        """Images that lie on the device and are augmented there."""
        count = self.batch * self.batches
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        return cached_loader(images, self.device, self.batch)


def make_work(device: torch.device, batch: int | None) -> Work:
    """The thesis' width and an eighth of its depth, so that there is time to compile it; on a CPU
    as little as shows that all of it works."""
    if device.type == "cuda":
        return Work(device, 0.4, 1.9, batch or 256, 30, 5, tuple(ec2t_step.GPU_CASES))
    return Work(device, 0.14, 0.5, batch or 8, 2, 3, (("resnet20", 10, 4),))


def modes(device: torch.device, compiled: bool) -> list[Mode]:
    """All there are, those first that are quick to measure."""
    precisions = [p for p in PRECISIONS if p != "tf32" or device.type == "cuda"]
    layouts = (False, True)
    found = [Mode(p, last) for p, last in itertools.product(precisions, layouts)]
    slow = itertools.product(reversed(precisions), reversed(layouts))
    return found + [Mode(p, last, True) for p, last in slow if compiled]


def laid_out(work: Work, recipe: Recipe) -> nn.Module:
    return lay_out(work.network(), work.device, channels_last=recipe.channels_last)


def make_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, **calls: Callable
) -> TrainStep:
    """As the two stages make theirs."""
    device, logits = next(network.parameters()).device, Logits(network, CLASSES)
    forward = for_processes(logits, device, uses_all=True, compiled=recipe.compile)
    shared = {"network": network, "optimizer": optimizer, "classes": CLASSES, "recipe": recipe}
    return TrainStep(forward, **shared, **calls)


def stage1(work: Work, recipe: Recipe) -> TrainStep:
    network = laid_out(work, recipe)
    return make_step(network, sgd(network), recipe)


def stage2(work: Work, recipe: Recipe) -> TrainStep:
    network = laid_out(work, recipe)
    names = ternarized_names(network, family="micronet")
    ternarizer = Ternarizer(network, names, initial_scale=0.45, gamma=0.15)
    optimizer = make_optimizer(ternarizer, lr=1e-4, lr2=1e-5, weight_decay=5e-6)
    calls = {"prepare": ternarizer.prepare_step, "finish": ternarizer.finish_step}
    return make_step(network, optimizer, recipe, **calls)


def sgd(network: nn.Module) -> torch.optim.SGD:
    return make_sgd(network, **SGD)


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)


# the step of the loop, the optimizer of the bare one
STAGES = {1: (stage1, sgd), 2: (stage2, adam)}


def bare_steps(
    forward: Callable, optimizer: torch.optim.Optimizer, batch: Batch, count: int, amp: str = "off"
) -> Callable[[], None]:
    """So many steps, and nothing else."""
    images, labels = batch
    dtype = AMP[amp] and getattr(torch, AMP[amp])

    def run() -> None:
        for _ in range(count):
            with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
                logits = forward(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def waits(run: Callable[[], None]) -> list[str]:
    """Where the processor waited for the GPU, each time, as far as PyTorch notices."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in said if "called a synchronizing" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]


def measure_mode(work: Work, mode: Mode) -> Iterator[dict]:
    """A row for each stage."""
    allowed, gpu = PRECISIONS[mode.precision][0], work.device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    if mode.compile:
        torch.compiler.reset()  # else, after a few networks, it no longer compiles any
    loader, plain, waited, at, peak = work.loader(), None, None, [], None
    batch = next(loader.epoch(0))
    for stage, (make, optimizer_of) in STAGES.items():
        before = torch.cuda.memory_allocated() if gpu else 0
        step = make(work, mode.recipe)
        plain = plain or step  # the first stage's network is the bare one of both
        loop = partial(one_epoch, step, loader)
        loop()  # compiles, and tries algorithms in memory of their own
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            at = waits(loop)
            waited = len(at) / work.batches
            peak = torch.cuda.max_memory_allocated() - before
        forward = plain.forward if mode.compile else plain.network
        bare = bare_steps(
            forward, optimizer_of(plain.network), batch, work.batches, mode.recipe.amp
        )
        slow, fast, share = paired((loop, bare), device=work.device, pairs=work.pairs)
        images = work.batch * work.batches
        speeds = {"bare_images_per_second": images / fast, "loop_images_per_second": images / slow}
        # share: of the bare step's speed; lower quartile, median, upper quartile
        found = {**speeds, "share": share, "waits_per_step": waited, "peak_bytes": peak}
        found["waits_at"] = sorted(set(at))
        yield {"stage": stage, **asdict(mode), **found}


def one_epoch(step: TrainStep, loader: CachedLoader) -> None:
    """The training loop, without evaluation and checkpoints."""
    train_epoch(step, loader, Progress({}), seed=0, epoch=0, label="")


def added_to_a_step(work: Work) -> Iterator[dict]:
    """What EC2T adds to a plain step, and a teacher to its own forward pass."""
    repeats = 10 if work.device.type == "cuda" else 1
    for (model, classes, batch), pair in itertools.product(work.cases, ec2t_step.PAIRS):
        where = (model, classes, batch, work.device)
        steps = tuple(ec2t_step.make_step(*where, kind) for kind in pair)
        *_, quartiles = paired(steps, device=work.device, pairs=work.pairs, repeats=repeats)
        what = f"step of {model}, batch {batch}: {pair[1]} / {pair[0]}"
        yield {"what": what, "ratio": quartiles, "at_most": MOST[pair[1]]}


def augmentation(work: Work) -> Iterator[dict]:
    """The CIFAR recipe, in batches on the device."""
    loader = work.loader()

    def epoch() -> None:
        for _ in loader.epoch(0):
            pass

    times = [seconds(epoch, work.device) for _ in range(1 + work.pairs)][1:]
    rate = work.batch * work.batches / statistics.median(times)
    yield {"what": f"augmentation on {work.device.type}", "images_per_second": rate}


def one_process(work: Work) -> Iterator[dict]:
    """DDP among one process: what its hooks and collectives cost."""
    gpu = work.device.type == "cuda"
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        batch, runs = next(work.loader().epoch(0)), []
        for wrap in (False, True):
            network = work.network().to(work.device)
            places = [work.device] if gpu else None
            forward = DistributedDataParallel(network, places) if wrap else network
            runs.append(bare_steps(forward, sgd(network), batch, work.batches))
        *_, quartiles = paired(tuple(runs), device=work.device, pairs=work.pairs)
    finally:
        dist.destroy_process_group()
    yield {"what": f"step with DDP over {backend} / bare step, one process", "ratio": quartiles}


@dataclass
class Measured:
    """All figures, and what is missing and why."""

    modes: list[dict] = field(default_factory=list)
    figures: list[dict] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)

    def missed(self) -> list[str]:
        """Targets for GPUs."""
        shares = [row for row in self.modes if row["share"][1] < LEAST_SHARE]
        waited = [row for row in self.modes if row["waits_per_step"]]
        found = [f"loop below {LEAST_SHARE:.0%} of bare: {label(row)}" for row in shares]
        found += [f"waits: {label(row)}, {' '.join(row['waits_at'])}" for row in waited]
        dear = (row for row in self.figures if row.get("ratio", [0, 0])[1] > row.get("at_most", 9))
        return found + [f"above {row['at_most']}: {row['what']}" for row in dear]


def label(row: dict) -> str:
    return f"stage {row['stage']}, {Mode(row['precision'], row['channels_last'], row['compile'])}"


def measure(work: Work, *, compiled: bool, limit: float) -> Measured:
    """All that `limit` seconds allow."""
    measured, start, longest = Measured(), time.monotonic(), 0.0
    for part in (added_to_a_step, augmentation, one_process):
        measured.figures += part(work)
    for mode in modes(work.device, compiled):
        began = time.monotonic()
        if began - start + longest > limit:
            measured.not_measured.append(f"{mode}: no time was left")
            continue
        measured.modes += measure_mode(work, mode)
        longest = max(longest, time.monotonic() - began)
    if work.device.type != "cuda":
        reason = "needs a GPU"
        missing = ("tf32", "waits for the device", "peak memory", "DDP over nccl")
        measured.not_measured += [f"{what}: {reason}" for what in missing]
    if not compiled:
        measured.not_measured.append("compiled steps: --compile adds them")
    return measured


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def quartiles(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def to_markdown(measured: Measured, work: Work, where: dict) -> str:
    """The tables, as docs/benchmarks.md has them."""
    yes, versions = ("", "x"), where["versions"]
    header = ["stage", "precision", "channels last", "compiled", "bare: images/s", "loop: images/s"]
    header += ["loop / bare (quartiles)", "waits a step", "peak MB"]
    rows = [
        [row["stage"], row["precision"], yes[row["channels_last"]], yes[row["compile"]],
         f"{row['bare_images_per_second']:,.0f}", f"{row['loop_images_per_second']:,.0f}",
         quartiles(row["share"]), or_dash(row["waits_per_step"], "g"),
         or_dash(row["peak_bytes"] and row["peak_bytes"] / 1e6, ",.0f")]
        for row in measured.modes
    ]  # fmt: skip
    figures = [
        [row["what"], quartiles(row["ratio"]) if "ratio" in row
         else f"{row['images_per_second']:,.0f} images/s"]
        for row in measured.figures
    ]  # fmt: skip
    lines = [
        f"{where['devices'][0]}, torch {versions['torch']}, CUDA {versions['cuda']}; MicroNet "
        f"d{work.depth} w{work.width}, batch {work.batch}:", "",
        *table(header, rows), "", *table(["", ""], figures), "",
        *(f"* not measured: {what}" for what in measured.not_measured),
    ]  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; on a GPU, the number of targets that are missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--cuda", action=switch, default=torch.cuda.is_available())
    parser.add_argument("--compile", action=switch, default=None, help="default: on a GPU")
    parser.add_argument("--batch", type=int, help="default: 256, on a CPU 8")
    parser.add_argument("--minutes", type=float, default=9, help="what takes longer is left out")
    parser.add_argument("--json", type=Path, help="everything, in units")
    args = parser.parse_args(argv)
    device = choose_device(args.cuda)
    make_deterministic(False)
    work = make_work(device, args.batch)
    compiled = args.cuda if args.compile is None else args.compile
    measured = measure(work, compiled=compiled, limit=60 * args.minutes)
    where = environment(device)
    missed = measured.missed() if args.cuda else []
    print(to_markdown(measured, work, where))
    for target in missed:
        print(f"missed: {target}", file=sys.stderr)
    if args.json:
        content = {"environment": where, "work": vars(work) | {"device": str(device)}}
        content |= {**vars(measured), "missed": missed}
        write_text(json.dumps(content, indent=1) + "\n", args.json)
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
