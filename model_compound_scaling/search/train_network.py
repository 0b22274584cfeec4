"""Training one full-precision network of the search in a folder of its own."""

from pathlib import Path

import torch

from data.errors import UserError
from data.loading import Data
from model_compound_scaling.checkpoints.network_checkpoint import network_content
from model_compound_scaling.machine.devices import for_processes, lay_out, memory_of
from model_compound_scaling.networks.building import build, expected_tensors
from model_compound_scaling.runs.history import Configuration, History
from model_compound_scaling.runs.run import Run
from model_compound_scaling.runs.save_interval import Interval
from model_compound_scaling.search.points import Point, parameters
from model_compound_scaling.training.evaluation import require_fit
from model_compound_scaling.training.loop import run_epochs
from model_compound_scaling.training.optimizers import load_optimizer, make_sgd
from model_compound_scaling.training.recipe import Options, lr_factor
from model_compound_scaling.training.step import TrainStep
from model_compound_scaling.training.weight_average import Average

PHASE = "training"


def require_memory(point: Point, device: torch.device, *, averaged: bool) -> None:
    """UserError if not even weights, gradients and momentum (4 bytes each) fit into memory."""
    values = sum(tensor.numel() for tensor in expected_tensors(point.spec).values())
    needed, memory = 4 * (4 if averaged else 3) * values, memory_of(device)
    if needed > memory:
        raise UserError(
            f"--phi {point.phi:g} gives {point.name} {values:,} parameters: weights, gradients and "
            f"momentum alone take {needed / 1e9:,.1f} GB, more than the "
            f"{memory / 1e9:,.1f} GB of {device}: lower --phi or --grid"
        )


def train_point(
    point: Point,
    *,
    folder: Path,
    config: Configuration,
    resume: str,
    override: bool,
    data: Data,
    recorded: dict,
    device: torch.device,
    interval: Interval,
) -> History:
    """Train one network with SGD as `config` says, in `folder` / its name.

    `config` holds epochs, start_epoch, seed and the recipe: lr, momentum, weight_decay, schedule,
    warmup_epochs, label_smoothing, mixup, cutmix, ema, amp, channels_last and compile. `recorded`
    is what checkpoints say about the data.
    """
    torch.manual_seed(config["seed"])
    network = build(point.spec)
    require_fit(network, data)
    network = lay_out(network, device, channels_last=config["channels_last"])
    run = Run(
        folder / point.name,
        config=config,
        resume=resume,
        override=override,
        spec=point.spec,
        phases=(PHASE,),
    )
    optimizer = make_sgd(network, config)
    averaged = Average(network, config["ema"]) if config["ema"] else None
    options = Options(**{k: config[k] for k in ("label_smoothing", "mixup", "cutmix", "amp")})
    step = TrainStep(
        for_processes(network, device, compiled=config["compile"]),
        network=network,
        optimizer=optimizer,
        classes=data.classes,
        options=options,
        averaged=averaged,
    )
    if run.state:
        state = run.state["resume"]
        network.load_state_dict(state["state_dict"] or run.state["state_dict"])
        load_optimizer(optimizer, state["optimizer"], keep=("lr",))  # of an epoch that has begun
        step.load_state_dict(state["step"])
        if averaged:
            averaged.module.load_state_dict(run.state["state_dict"])
    where = f"on {device}" + (
        f", {config['processes']} processes" if config["processes"] > 1 else ""
    )
    run.log(f"{point.name}: {parameters(network):,} parameters, {data.classes} classes, {where}")

    def prepare(epoch: int) -> dict:
        factor = lr_factor(
            config["schedule"],
            epoch=epoch,
            epochs=config["epochs"],
            warmup=config["warmup_epochs"],
        )
        for group in optimizer.param_groups:
            group["lr"] = factor * config["lr"]
        return {"lr": factor * config["lr"]}

    best = averaged.module if averaged else network

    def content() -> dict:
        # the file is the network whose accuracy counts; the one in training is beside it
        trained = network.state_dict() if averaged else None
        resume = {
            "phase": PHASE,
            "state_dict": trained,
            "optimizer": optimizer.state_dict(),
            "step": step.state_dict(),
        }
        return network_content(best, point.spec, recorded, resume=resume)

    run_epochs(
        run=run,
        phase=PHASE,
        epochs=range(config["start_epoch"], config["epochs"]),
        seed=config["seed"],
        step=step,
        data=data,
        prepare=prepare,
        content=content,
        evaluated=best,
        interval=interval,
    )
    return run.close()
