"""Compound scaling: the points of the grid, and training the network of each."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import Data
from data.errors import UserError
from model_compound_scaling.checkpoints import network_content
from model_compound_scaling.micronet import scaled_shape
from model_compound_scaling.registry import NetworkSpec, build, table_row
from model_compound_scaling.runs import Run
from model_compound_scaling.training import SCHEDULES, require_fit, run_epochs

PHASE = "training"


@dataclass(frozen=True)
class Point:
    """One network of the search: its folder's name and how to build it."""

    name: str
    spec: NetworkSpec


def scaling_points(
    model: str, *, num_classes: int, grid: list[float], phis: list[float]
) -> list[Point]:
    """Networks of depth d^phi and width w^phi for each pair d, w of `grid` and each phi."""
    if table_row(model).family != "micronet":
        return [Point(model.replace(":", "-"), NetworkSpec(model, num_classes))]
    if len(grid) % 2:
        raise UserError(f"--grid takes pairs of depth and width, not {len(grid)} values")
    points = [
        Point(
            f"{model}_d{depth:g}_w{width:g}_phi{phi:g}",
            NetworkSpec(
                model, num_classes, scaled_shape(model, depth=depth**phi, width=width**phi)
            ),
        )
        for phi in phis
        for depth, width in zip(grid[::2], grid[1::2], strict=True)
    ]
    if len({point.name for point in points}) < len(points):
        raise UserError("--grid and --phi name the same network twice")
    return points


def train_point(
    point: Point,
    *,
    folder: Path,
    config: dict,
    resume: str,
    data: Data,
    recorded: dict,
    device: torch.device,
) -> Run:
    """Train one network with SGD as `config` says (epochs, start_epoch, lr, momentum,
    weight_decay, schedule, seed), in `folder` / its name.

    `recorded` is what its checkpoints say about the data.
    """
    torch.manual_seed(config["seed"])
    network = build(point.spec)
    require_fit(network, data)
    network = network.to(device)
    run = Run(folder / point.name, config=config, resume=resume, spec=point.spec, phases=(PHASE,))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        nesterov=config["momentum"] > 0,
    )
    if run.state:
        network.load_state_dict(run.state["state_dict"])
        optimizer.load_state_dict(run.state["resume"]["optimizer"])
    count = sum(p.numel() for p in network.parameters())
    run.log(f"{point.name}: {count:,} parameters, {data.classes} classes, on {device}")
    if run.epochs_done >= config["epochs"]:
        run.log(f"already trained for {run.epochs_done} epochs")

    def prepare(epoch: int) -> dict:
        lr = config["lr"] * SCHEDULES[config["schedule"]](epoch, config["epochs"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        return {"lr": lr}

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def content() -> dict:
        resume = {"phase": PHASE, "optimizer": optimizer.state_dict()}
        return network_content(network, point.spec, recorded, resume=resume)

    run_epochs(
        run=run,
        phase=PHASE,
        epochs=range(config["start_epoch"], config["epochs"]),
        seed=config["seed"],
        network=network,
        data=data,
        step=step,
        prepare=prepare,
        content=content,
    )
    return run


def results_table(runs: list[Run]) -> str:
    """The grid's networks with their best validation accuracy, aligned."""
    width = max(len(run.folder.name) for run in runs)
    lines = [f"{'network':{width}}  epochs  best top-1"]
    lines += [
        f"{run.folder.name:{width}}  {run.epochs_done:6}  {run.best['val_top1']:9.2f} %"
        for run in runs
        if run.history
    ]
    return "\n".join(lines)
