"""Training one full-precision network of the search in a folder of its own."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from data import Data, UserError
from model_compound_scaling.checkpoints.network_checkpoint import network_content
from model_compound_scaling.command_line import inputs
from model_compound_scaling.machine import for_processes, lay_out, processes
from model_compound_scaling.machine.devices import memory_of
from model_compound_scaling.networks.building import build, expected_tensors, require_trainable
from model_compound_scaling.networks.logits import Logits
from model_compound_scaling.networks.registry import REGISTRY
from model_compound_scaling.runs import History, Run, RunRequest
from model_compound_scaling.search.points import Point
from model_compound_scaling.training import Average, Phase, Recipe, TrainStep, run_epochs
from model_compound_scaling.training.evaluation import report, require_fit
from model_compound_scaling.training.optimizers import load_optimizer, make_sgd

PHASE = "training"


@dataclass(frozen=True)
class Training:
    """How a network is trained: what the flags of the same names say."""

    epochs: int
    start_epoch: int = 0  # epochs before it are left out
    ignore_class_names: bool = False  # of a run that is gone on from
    seed: int = 0
    lr: float = 0.1  # the first learning rate, or the one after warmup_epochs
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0  # decay of the moving average of the weights, 0 for none
    recipe: Recipe = field(default_factory=partial(Recipe, schedule="cosine"))


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


def first_network(
    point: Point, training: Training, data: Data, init: nn.Module | None
) -> tuple[nn.Module, list[str]]:
    """The network before the first step, random or with the tensors of `init`, but for those of its
    number of classes, which a line names."""
    torch.manual_seed(training.seed)
    network, new = build(point.spec), []
    if init:
        own, found = network.state_dict(), init.state_dict()
        new = [key for key, tensor in own.items() if tensor.shape != found[key].shape]
        for key in new:  # as nn.Linear begins: torchvision's large first logits undo the training
            bound = own[key][0].numel() ** -0.5 if own[key].dim() > 1 else 0.0
            own[key].uniform_(-bound, bound)
        network.load_state_dict(found | {key: own[key] for key in new})
    require_fit(network, data)
    require_trainable(network)
    return network, [f"{' and '.join(new)} begin anew, for other classes"] * bool(new)


def train_point(
    point: Point,
    training: Training,
    request: RunRequest,
    *,
    data: Data,
    device: torch.device,
    init: nn.Module | None = None,
) -> History:
    """Train one network with SGD, from the weights of `init` if there is one."""
    network, line = first_network(point, training, data, init)
    network = lay_out(network, device, channels_last=training.recipe.channels_last)
    ignore = training.ignore_class_names or request.override
    check = partial(inputs.require_same_classes, data=data, ignore=ignore)
    run = Run(request, spec=point.spec, phases=(PHASE,), check=check)
    rates = {name: getattr(training, name) for name in ("lr", "momentum", "weight_decay")}
    optimizer = make_sgd(network, **rates)
    averaged = Average(network, training.ema) if training.ema else None
    options = {"uses_all": point.spec.model in REGISTRY, "compiled": training.recipe.compile}
    step = TrainStep(
        for_processes(Logits(network, data.classes), device, **options),
        network=network,
        optimizer=optimizer,
        classes=data.classes,
        recipe=training.recipe,
        averaged=averaged,
    )
    if run.state:
        state = run.state["resume"]
        network.load_state_dict(state["state_dict"] or run.state["state_dict"])
        load_optimizer(optimizer, state["optimizer"], keep=("lr",))  # of an epoch that has begun
        step.load_state_dict(state["step"])
        if averaged:
            averaged.module.load_state_dict(run.state["state_dict"])
    world = processes.world_size()
    where = f"on {device}" + (f", {world} processes" if world > 1 else "")
    parameters = sum(p.numel() for p in network.parameters())
    run.log(*line, f"{point.name}: {parameters:,} parameters, {data.classes} classes, {where}")

    def prepare(epoch: int) -> dict:
        lr = training.lr * training.recipe.lr_factor(epoch, training.epochs)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return {"lr": lr}

    best = averaged.module if averaged else network

    def content() -> dict:
        # the file is the network whose accuracy counts; the one in training is beside it
        trained = network.state_dict() if averaged else None
        states = {"optimizer": optimizer.state_dict(), "step": step.state_dict()}
        resume = {"phase": PHASE, "state_dict": trained, **states}
        return network_content(best, point.spec, inputs.describe(data), resume=resume)

    phase = Phase(PHASE, range(training.start_epoch, training.epochs), training.seed)
    run_epochs(run, phase, step, data, content=content, prepare=prepare, evaluated=best)
    report(run, network, data)
    return run.close()
