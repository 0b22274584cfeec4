"""What is asked of the network before stage 2, and what is left of it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data import Data
from model_compound_scaling.checkpoints import Checkpoint, load_network
from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.machine import Log, lay_out, processes
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.runs import History, copy_best, turn
from model_compound_scaling.runs.history import TargetMissed
from model_compound_scaling.training.evaluation import evaluate, require_fit
from model_quantization.grid import results, results_csv, results_table
from model_quantization.plots import plot_pareto
from model_quantization.quality_search import smallest


def require_accuracy(
    checkpoint: Checkpoint, spec: NetworkSpec, data: Data, device: torch.device, accuracy: float
) -> None:
    """TargetMissed if the network that is given does not have the accuracy (percent) itself."""
    network = load_network(checkpoint, spec)
    require_fit(network, data)
    top1 = evaluate(lay_out(network, device), data.val.epoch(0), classes=data.classes).top1
    if top1 < accuracy:
        raise TargetMissed(
            f"--target-accuracy {accuracy:g}: {checkpoint.path} itself has {top1:.2f} % top-1; "
            "name a lower one, or a better network"
        )


def conclude(
    runs: Sequence[History],
    output: Path,
    *,
    accuracy: float | None,
    objective: str,
    pareto: Path | None,
) -> None:
    """Print and write the table, draw it to `pareto`, and copy the best network, or the smallest of
    those with `accuracy`. TargetMissed, at last, if there is such a target and no network has
    it."""
    log, table = Log(output), results(runs)
    chosen = None if accuracy is None else smallest(table, objective, accuracy)
    log(*results_table(table, chosen).splitlines())
    with turn(output):
        if processes.is_main():
            write_text(results_csv(table), output / "results.csv")
        target = output / "Ternary_best_acc.pt"
        winner = copy_best(runs if chosen is None else [runs[chosen]], target)
    if pareto and processes.is_main():
        plot_pareto(table, pareto, chosen)
    if winner is None:
        return
    log(f"best network: {target}")
    if accuracy is not None:
        name, top1 = winner.folder.name, f"top-1 {winner.best['val_top1']:.2f} %"
        if chosen is None:
            missed = f"--target-accuracy {accuracy:g} is not reached"
            raise TargetMissed(f"{missed}: the best, {name}, has {top1}")
        log(f"* {name} has the least {objective} of those with {accuracy:g} %: {top1}")
