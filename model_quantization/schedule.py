"""The two phases of EC2T on one network: ternary training, then training with frozen codes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Data
from model_compound_scaling.checkpoints import (
    Checkpoint,
    load_network,
    network_content,
    read_checkpoint,
)
from model_compound_scaling.registry import NetworkSpec, table_row
from model_compound_scaling.runs import Run
from model_compound_scaling.training import evaluate, run_epochs
from model_quantization.ec2t import Ternarizer
from model_quantization.layers import freeze_ternary, pruned_names, ternarized_names


@dataclass(frozen=True)
class Point:
    """One point of the grid over initial centroids and strength of the entropy constraint."""

    initial_scale: float
    gamma: float

    @property
    def name(self) -> str:
        return f"s{self.initial_scale:g}_g{self.gamma:g}"


def grid_points(initial_scales: list[float], gammas: list[float]) -> list[Point]:
    """Every pair of an initial centroid scale and a gamma."""
    return [Point(s, g) for s in initial_scales for g in gammas]


def layer_names(network: nn.Module, *, family: str, config: dict) -> list[str]:
    """The parameters that a run quantizes, as its flags say."""
    if config["prune"]:
        return pruned_names(network, families=config["prune"])
    return ternarized_names(network, family=family, pattern=config["ternarize"])


def make_optimizer(network: nn.Module, ternarizer: Ternarizer, config: dict) -> torch.optim.Adam:
    """Adam with three groups: latents, centroids, and all other parameters."""
    quantized = set(ternarizer.weights)
    others = [p for p in network.parameters() if p not in quantized and p.requires_grad]
    return torch.optim.Adam(
        [
            {"params": ternarizer.latents, "lr": config["lr"]},
            {"params": ternarizer.centroids, "lr": config["lr2"]},
            {"params": others, "lr": config["lr"], "weight_decay": config["weight_decay"]},
        ]
    )


def warnings(layers: list[dict]) -> Iterator[str]:
    """Layers that lost all their weights or one side of them."""
    for layer in layers:
        if layer["zeros"] == 1:
            yield f"{layer['layer']} is all zero"
        elif not layer["positive"] or not layer["negative"]:
            side = "negative" if layer["positive"] else "positive"
            yield f"{layer['layer']} has no {side} weights left"


class Quantization:
    """One network on its way through the two phases."""

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        ternarizer: Ternarizer,
        *,
        spec: NetworkSpec,
        config: dict,
        data: Data,
        recorded: dict,
    ) -> None:
        self.run, self.network, self.ternarizer = run, network, ternarizer
        self.spec, self.config, self.data, self.recorded = spec, config, data, recorded
        self.phase, self.optimizer = "", None
        self.reported: set[str] = set()

    def step(self, loss: Tensor) -> None:
        """Update latents, centroids and the other parameters, then the ternary weights."""
        self.network.zero_grad()
        loss.backward()
        self.ternarizer.prepare_step()
        self.optimizer.step()
        self.ternarizer.finish_step()

    def train(self, phase: str, epochs: range) -> None:
        """Run the epochs of one phase that are not done yet."""
        self.phase = phase
        self.optimizer = make_optimizer(self.network, self.ternarizer, self.config)
        state = self.run.state.get("resume", {})
        if state.get("phase") == phase:
            self.network.load_state_dict(self.run.state["state_dict"])
            self.ternarizer.load_state_dict(state["ternarizer"])
            self.optimizer.load_state_dict(state["optimizer"])
        run_epochs(
            run=self.run,
            phase=phase,
            epochs=epochs,
            seed=self.config["seed"],
            network=self.network,
            data=self.data,
            step=self.step,
            figures=self.figures,
            content=self.content,
        )

    def load_best(self) -> None:
        """Go back to the best ternary epoch."""
        best = read_checkpoint(self.run.folder / "best.pt")
        self.run.log(f"freezing the codes of epoch {best.content['figures']['epoch']}")
        self.network.load_state_dict(best.state)

    def content(self) -> dict:
        """A checkpoint: an ordinary network, and under "resume" what only training needs."""
        resume = {
            "phase": self.phase,
            "ternarizer": self.ternarizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return network_content(self.network, self.spec, self.recorded, resume=resume)

    def figures(self) -> dict:
        """Zeros and each layer's clusters; names a layer that loses one, once."""
        layers = self.ternarizer.figures()
        for line in set(warnings(layers)) - self.reported:
            self.run.log(f"warning: {line}")
            self.reported.add(line)
        return {"zeros": self.ternarizer.zeros(), "layers": layers}

    def log_accuracy(self, what: str) -> None:
        """Validation accuracy of the network as it is now."""
        scores = evaluate(self.network, self.data.val.epoch(0), total=len(self.data.val))
        self.run.log(f"{what}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %")


def quantize_point(
    point: Point,
    *,
    checkpoint: Checkpoint,
    spec: NetworkSpec,
    folder: Path,
    config: dict,
    resume: str,
    data: Data,
    recorded: dict,
    device: torch.device,
) -> Run:
    """Ternarize (or prune) the network of a checkpoint, in `folder`.

    `config` holds epochs, retrain_epochs, lr, lr2, weight_decay, centroids, prune, ternarize, eval
    and seed; `recorded` is what checkpoints say about the data. The result in `best.pt` is an
    ordinary network with ordinary keys.
    """
    network = load_network(checkpoint, spec).to(device)
    names = layer_names(network, family=table_row(spec.model).family, config=config)
    fixed = freeze_ternary(network) if config["prune"] else []
    run = Run(folder, config=config, resume=resume)
    measure = config["eval"] and not run.history
    if measure:
        full = evaluate(network, data.val.epoch(0), total=len(data.val))
        run.log(f"before quantization: top-1 {full.top1:.2f} %, top-5 {full.top5:.2f} %")
    ternarizer = Ternarizer(
        network,
        names,
        initial_scale=point.initial_scale,
        gamma=point.gamma,
        kmeans=config["centroids"] > 0,
        prune=bool(config["prune"]),
    )
    count = sum(weight.numel() for weight in ternarizer.weights)
    run.log(
        f"{folder.name}: {len(names)} layers with {count:,} weights"
        f"{f', {len(fixed)} ternary layers stay as they are' if fixed else ''}, on {device}"
    )
    job = Quantization(
        run, network, ternarizer, spec=spec, config=config, data=data, recorded=recorded
    )
    if measure:
        job.log_accuracy(f"quantized, not trained ({ternarizer.zeros():.2f} % zeros)")
    epochs, total = config["epochs"], config["epochs"] + config["retrain_epochs"]
    job.train("ternary", range(epochs))
    if total > epochs:
        if run.history and run.epochs_done <= epochs:
            job.load_best()
        ternarizer.freeze()
        job.train("frozen", range(epochs, total))
    return run


def results_table(runs: list[Run]) -> str:
    """The grid's networks with their accuracy and zeros, aligned."""
    width = max(len(run.folder.name) for run in runs)
    lines = [f"{'network':{width}}  best top-1    zeros"]
    lines += [
        f"{run.folder.name:{width}}  {run.best['val_top1']:8.2f} %  {run.best['zeros']:5.2f} %"
        for run in runs
        if run.history
    ]
    return "\n".join(lines)
