"""The two phases of EC2T on one network: ternary training, then training with frozen codes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.loading import Data
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import (
    Checkpoint,
    load_network,
    network_content,
)
from model_compound_scaling.machine import processes
from model_compound_scaling.machine.devices import for_processes, lay_out
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_compound_scaling.runs.history import History
from model_compound_scaling.runs.run import Run
from model_compound_scaling.runs.save_interval import Interval
from model_compound_scaling.training.evaluation import evaluate, require_fit
from model_compound_scaling.training.loop import run_epochs
from model_compound_scaling.training.optimizers import load_optimizer
from model_compound_scaling.training.step import TrainStep
from model_quantization.ec2t.latent_layers import MIN_CENTROID
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.gamma_search import Goal, solve_gamma
from model_quantization.grid import Point
from model_quantization.layer_selection import freeze_quantized, pruned_names, ternarized_names


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
            {"params": [ternarizer.latent], "lr": config["lr"]},
            {"params": [ternarizer.centroids], "lr": config["lr2"]},
            {"params": others, "lr": config["lr"], "weight_decay": config["weight_decay"]},
        ],
        fused=True,
    )


def require_continuable(state: dict, *, names: list[str], config: dict) -> None:
    """UserError or CheckpointError for a checkpoint of other layers or levels, or one whose codes
    were frozen too early."""
    saved, old = state["resume"], state["config"]
    layers = saved.get("ternarizer")
    layers = layers.keys() if isinstance(layers, dict) else set()
    if other := sorted(layers ^ set(names)):
        raise CheckpointError(
            f"other layers are quantized in the checkpoint than in this run, first {other[0]}: "
            "leave --ternarize as it was, or start over with --no-resume"
        )
    if old.get("levels", config["levels"]) != config["levels"]:
        raise CheckpointError(
            f"the checkpoint's layers have {old['levels']} levels: leave --levels as it was, or "
            "start over with --no-resume"
        )
    done = state["history"][-1]["epoch"] if state["history"] else 0
    if saved.get("phase") == "frozen" and done < config["epochs"]:
        raise UserError(
            f"--epochs {config['epochs']}: the codes were frozen before so many epochs; keep "
            "--epochs, and raise --retrain-epochs to go on, or start over with --no-resume"
        )


# what can go wrong with a layer, in the words of the log
AILMENTS: dict[str, Callable[[dict], bool]] = {
    "all weights are zero": lambda layer: layer["zeros"] == 1,
    "no positive weights left": lambda layer: not layer["positive"] and layer["zeros"] < 1,
    "no negative weights left": lambda layer: not layer["negative"] and layer["zeros"] < 1,
    f"w_p at its guard of {MIN_CENTROID} standard deviations": lambda layer: layer["w_p_guarded"],
    f"w_n at its guard of {MIN_CENTROID} standard deviations": lambda layer: layer["w_n_guarded"],
}


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
        scoring_params: Callable[[nn.Module], float],
        forward: Callable[[Tensor], Tensor],
        interval: Interval,
    ) -> None:
        self.run, self.network, self.ternarizer = run, network, ternarizer
        self.forward, self.interval = forward, interval
        self.spec, self.config, self.data, self.recorded = spec, config, data, recorded
        self.scoring_params = scoring_params
        self.goal = self._goal()
        self.phase, self.optimizer = "", None
        self.codes: list[Tensor] = []  # before the epoch
        self.reported: set[tuple[str, str]] = set()

    def _goal(self) -> Goal | None:
        zeros, params = self.config["target_sparsity"], self.config["target_params"]
        if zeros is not None:
            return Goal(f"{zeros:g} % zeros", zeros, 1.0, self.ternarizer.zeros)
        if params is not None:  # fewer with more gamma, hence the signs
            name = f"{params:,.0f} scoring parameters"
            return Goal(name, -params, 0.02 * params, lambda: -self.scoring_params(self.network))
        return None

    def prepare(self, epoch: int) -> dict:
        """Before an epoch: gamma for the goal, if there is one."""
        if self.goal and not self.ternarizer.frozen:
            solve_gamma(self.goal, self.ternarizer.set_gamma)
            if not self.goal.reached():
                self.warn("out of reach, other --ini-c-divrs may help", [self.goal.name])
        self.codes = self.ternarizer.codes()
        return {"gamma": self.ternarizer.gamma}

    def train(self, phase: str, epochs: range) -> None:
        """Run the epochs of one phase that are not done yet."""
        self.phase = phase
        self.optimizer = make_optimizer(self.network, self.ternarizer, self.config)
        step = TrainStep(
            self.forward,
            network=self.network,
            optimizer=self.optimizer,
            classes=self.data.classes,
            prepare=self.ternarizer.prepare_step,
            finish=self.ternarizer.finish_step,
        )
        state = self.run.state.get("resume", {})
        if state.get("phase") == phase:
            self.network.load_state_dict(self.run.state["state_dict"])
            self.ternarizer.load_state_dict(state["ternarizer"])
            if self.goal:  # else it is the configuration's
                self.ternarizer.gamma = state["gamma"]
            self.codes = [c.to(self.ternarizer.latent.device) for c in state["codes"]]
            load_optimizer(self.optimizer, state["optimizer"])
        run_epochs(
            run=self.run,
            phase=phase,
            epochs=epochs,
            seed=self.config["seed"],
            step=step,
            data=self.data,
            prepare=self.prepare,
            figures=self.figures,
            content=self.content,
            interval=self.interval,
        )

    def load_best(self) -> None:
        """Go back to the best ternary epoch."""
        best = self.run.best_network
        self.run.log(f"freezing the codes of epoch {best['figures']['epoch']}")
        self.network.load_state_dict(best["state_dict"])

    def content(self) -> dict:
        """A checkpoint: an ordinary network, and under "resume" what only training needs."""
        resume = {
            "phase": self.phase,
            "ternarizer": self.ternarizer.state_dict(),
            "gamma": self.ternarizer.gamma,
            "codes": self.codes,
            "optimizer": self.optimizer.state_dict(),
        }
        return network_content(self.network, self.spec, self.recorded, resume=resume)

    def figures(self) -> dict:
        """After an epoch: zeros, size, and each layer's clusters; names ailing layers, once."""
        layers = self.ternarizer.layers
        processes.require_equal([layers.codes(), layers.latent, layers.centroids], "codes")
        layers, codes = self.ternarizer.figures(), self.ternarizer.codes()
        for layer, before, after in zip(layers, self.codes, codes, strict=True):
            layer["reassigned"] = float((before != after).double().mean())
        for ailment, suffers in AILMENTS.items():
            suffering = (layer["layer"] for layer in layers if suffers(layer))
            self.warn(ailment, [name.removesuffix(".weight") for name in suffering])
        figures = {
            "zeros": self.ternarizer.zeros(),
            "scoring_params": self.scoring_params(self.network),
        }
        if self.goal:
            figures["on_target"] = self.goal.reached()
        return {**figures, "layers": layers}

    def warn(self, what: str, subjects: list[str]) -> None:
        """Log a warning that names the subjects it was not logged for before."""
        new = [subject for subject in subjects if (what, subject) not in self.reported]
        self.reported |= {(what, subject) for subject in new}
        if new:
            self.run.log(f"warning: {what}: {', '.join(new)}")

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
    override: bool,
    data: Data,
    recorded: dict,
    device: torch.device,
    scoring_params: Callable[[nn.Module], float],
    interval: Interval,
) -> History:
    """Ternarize (or prune) the network of a checkpoint, in `folder`.

    `config` holds epochs, retrain_epochs, lr, lr2, weight_decay, centroids, levels, prune,
    ternarize, eval, target_sparsity, target_params and seed; `recorded` is what checkpoints say
    about the data; `scoring_params` counts a network. The result in `best.pt` is an ordinary
    network with ordinary keys.
    """
    network = load_network(checkpoint, spec)
    require_fit(network, data)
    network = lay_out(network, device)
    names = layer_names(network, family=table_row(spec.model).family, config=config)
    fixed = freeze_quantized(network) if config["prune"] else []
    first = "pruning" if config["prune"] else "ternary"
    run = Run(
        folder,
        config=config,
        resume=resume,
        override=override,
        spec=spec,
        phases=(first, "frozen"),
        check=partial(require_continuable, names=names, config=config),
    )
    measure = config["eval"] and not run.state
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
        ttq_threshold=point.ttq_threshold,
        levels=config["levels"],
    )
    run.log(
        f"{folder.name}: {len(names)} layers with {ternarizer.latent.numel():,} weights"
        f"{f', {len(fixed)} quantized layers stay as they are' if fixed else ''}, on {device}"
    )
    job = Quantization(
        run,
        network,
        ternarizer,
        spec=spec,
        config=config,
        data=data,
        recorded=recorded,
        scoring_params=scoring_params,
        forward=for_processes(network, device),
        interval=interval,
    )
    if measure:
        job.log_accuracy(f"quantized, not trained ({ternarizer.zeros():.2f} % zeros)")
    epochs, total = config["epochs"], config["epochs"] + config["retrain_epochs"]
    job.train(first, range(epochs))
    if total > epochs:
        if run.epochs and run.epochs_done <= epochs:
            job.load_best()
        ternarizer.freeze()
        job.train("frozen", range(epochs, total))
    return run.close()
