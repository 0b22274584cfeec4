"""The two phases of EC2T on one network: ternary training, then training with frozen codes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Data
from model_compound_scaling.checkpoints import Checkpoint, load_network, network_content
from model_compound_scaling.command_line import inputs
from model_compound_scaling.machine import for_processes, lay_out, processes
from model_compound_scaling.networks.building import require_trainable
from model_compound_scaling.networks.few_values import zero_share
from model_compound_scaling.networks.logits import Logits
from model_compound_scaling.networks.registry import REGISTRY, NetworkSpec, table_row
from model_compound_scaling.runs import History, Run, RunRequest
from model_compound_scaling.training import (
    Distillation,
    Phase,
    Recipe,
    TrainStep,
    load_optimizer,
    run_epochs,
)
from model_compound_scaling.training.evaluation import evaluate, report, require_fit
from model_quantization import activation_bits
from model_quantization.continuing import codes_to_keep, put_back, require_continuable, warm_start
from model_quantization.ec2t.latent_layers import MIN_CENTROID
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.gamma_search import Goal, Sizes, smaller, solve_gamma
from model_quantization.grid import ZEROS, Point
from model_quantization.layer_selection import freeze_quantized, pruned_names, ternarized_names


@dataclass(frozen=True)
class Quantizing:
    """How a network is quantized: a point of the grid, and what the flags of the same names say."""

    point: Point
    epochs: int  # with moving codes
    retrain_epochs: int  # with frozen ones, from the best epoch on
    seed: int
    lr: float  # of latents and of what is not quantized
    lr2: float  # of centroids
    weight_decay: float  # of what is not quantized
    centroids: int  # not 0: the first ones by k-means
    levels: int
    prune: list[str] | None  # families to prune, instead of ternarizing
    ternarize: str | None  # which parameters, instead of the family's
    act_bits_other: int | None  # if point.act_bits: of the inputs of layers that are not quantized
    eval: bool  # measure the accuracy before quantization and before training, too
    target_sparsity: float | None  # percent of zeros to find gamma for
    target_params: float | None  # or scoring parameters
    target_bytes: float | None  # or bytes of the packed file
    gamma_schedule: str  # "linear": from 0 in the first half of the epochs with moving codes
    recipe: Recipe
    distillation: Distillation | None
    start: Path | None  # last.pt of the run whose network it starts from
    ignore_class_names: bool  # of a run that is gone on from

    @property
    def rising(self) -> bool:
        """Whether gamma rises; a network that starts from another has its zeros already."""
        return self.gamma_schedule == "linear" and self.start is None


def make_optimizer(
    ternarizer: Ternarizer, *, lr: float, lr2: float, weight_decay: float
) -> torch.optim.Adam:
    """Adam with three groups: latents, centroids, and all other parameters; a fourth one has the
    steps of activations, if there are any."""
    groups = ternarizer.parameter_groups(lr=lr, centroid_lr=lr2, weight_decay=weight_decay)
    steps = activation_bits.StepSizes(ternarizer.network)
    return torch.optim.Adam(steps.groups(groups, lr=activation_bits.STEP_RATE * lr), fused=True)


# what can go wrong with a layer, in the words of the log
AILMENTS: dict[str, Callable[[dict], bool]] = {
    "all weights are zero": lambda layer: layer["zeros"] == 1,
    "no positive weights left": lambda layer: not layer["positive"] and layer["zeros"] < 1,
    "no negative weights left": lambda layer: not layer["negative"] and layer["zeros"] < 1,
    f"w_p at its guard of {MIN_CENTROID} standard deviations": lambda layer: layer["w_p_guarded"],
    f"w_n at its guard of {MIN_CENTROID} standard deviations": lambda layer: layer["w_n_guarded"],
}


@dataclass(eq=False)
class Quantization:
    """One network on its way through the two phases."""

    run: Run
    network: nn.Module
    ternarizer: Ternarizer
    settings: Quantizing
    spec: NetworkSpec
    data: Data
    sizes: Sizes

    def __post_init__(self) -> None:
        self.forward = for_processes(
            Logits(self.network, self.data.classes),
            self.ternarizer.latent.device,
            uses_all=self.spec.model in REGISTRY,
            compiled=self.settings.recipe.compile,
        )
        self.phase, self.epochs, self.step = "", range(0), None
        self.step_sizes = activation_bits.StepSizes(self.network)
        self.gamma = self.settings.point.gamma
        self.codes: list[Tensor] = []  # before the epoch
        self.reported: set[tuple[str, str]] = set()
        self.goal = self.find_goal()

    def find_goal(self) -> Goal | None:
        """What gamma is to be found for, if for anything."""
        settings, sizes, network = self.settings, self.sizes, self.network
        if (zeros := settings.target_sparsity) is not None:
            return Goal(f"zeros {zeros:g}{ZEROS['zeros']}", zeros, 1.0, self.ternarizer.zeros)
        if (params := settings.target_params) is not None:
            text = "{:,.0f} scoring parameters"
            return smaller(text, params, lambda: sizes.total(network).params)
        if settings.target_bytes is not None:
            packed, effort = partial(sizes.packed, network), {"rounds": 8, "times": 1}  # slow
            return smaller("{:,.0f} bytes", settings.target_bytes, packed, **effort)
        return None

    def find_gamma(self) -> None:
        """The strength for the goal, of the latent weights as they are now."""
        self.gamma = solve_gamma(self.goal, self.ternarizer.set_gamma)

    def prepare(self, epoch: int) -> dict:
        """Before an epoch: its learning rates, and gamma for the goal, if there is one."""
        if self.goal and not self.ternarizer.frozen:
            self.find_gamma()
            if not self.goal.reached():
                self.warn("out of reach, other --ini-c-divrs may help", [self.goal.name])
            if self.settings.rising:
                self.ternarizer.set_gamma(self.strength(epoch * len(self.data.train)))
        factor = self.settings.recipe.lr_factor(epoch - self.epochs.start, len(self.epochs))
        lr, lr2 = factor * self.settings.lr, factor * self.settings.lr2
        frozen = self.phase == "frozen"  # steps settle, and in the last epoch what depends on them
        steps = 0.0 if frozen and epoch == self.epochs[-1] else lr2 if frozen else lr
        rates = (lr, lr2, lr, activation_bits.STEP_RATE * steps)
        for group, rate in zip(self.step.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.codes = self.ternarizer.codes()
        return {"gamma": self.gamma, "lr": lr}

    def strength(self, steps: int) -> float:
        """gamma after so many steps."""
        rise = self.settings.epochs * len(self.data.train) / 2
        return self.gamma * (min(1.0, steps / rise) if self.settings.rising else 1.0)

    def prepare_step(self) -> None:
        """Before the optimizer's step."""
        self.ternarizer.prepare_step()
        self.step_sizes.prepare_step()

    def finish_step(self) -> None:
        """After the optimizer's step."""
        self.step_sizes.finish_step()
        steps, epoch = self.step.number + 1, len(self.data.train)
        if self.goal and not self.ternarizer.frozen and self.goal.due(steps % epoch, epoch):
            self.find_gamma()
        self.ternarizer.gamma = self.strength(steps)
        self.ternarizer.finish_step()

    def train(self, phase: str, epochs: range) -> None:
        """Run the epochs of one phase that are not done yet."""
        settings, ternarizer = self.settings, self.ternarizer
        self.phase, self.epochs = phase, epochs
        rates = {"lr": settings.lr, "lr2": settings.lr2, "weight_decay": settings.weight_decay}
        optimizer = make_optimizer(ternarizer, **rates)
        step = TrainStep(self.forward, network=self.network, optimizer=optimizer,
                         classes=self.data.classes, recipe=settings.recipe,
                         prepare=self.prepare_step, finish=self.finish_step,
                         distillation=settings.distillation)  # fmt: skip
        self.step = step
        state = self.run.state.get("resume", {})
        if state.get("phase") == phase:
            self.network.load_state_dict(self.run.state["state_dict"])
            ternarizer.load_state_dict(state["ternarizer"])
            if self.goal:  # else it is the configuration's
                self.gamma = state["gamma"]
            ternarizer.gamma = state.get("strength", self.gamma)
            self.codes = [c.to(ternarizer.latent.device) for c in state["codes"]]
            load_optimizer(optimizer, state["optimizer"], keep=("lr",))
            if "step" in state:
                step.load_state_dict(state["step"])
        calls = {"prepare": self.prepare, "figures": self.figures, "content": self.content}
        try:
            run_epochs(self.run, Phase(phase, epochs, settings.seed), step, self.data, **calls)
        finally:
            self.step = None  # which calls us: a circle would hold the folder after an error

    def freeze(self) -> None:
        """Go back to the best ternary epoch, unless later ones are done, and keep its codes."""
        if self.run.epochs and self.run.epochs_done <= self.settings.epochs:
            best = self.run.best_network
            self.run.log(f"freezing the codes of epoch {best['figures']['epoch']}")
            self.network.load_state_dict(best["state_dict"])
        self.ternarizer.freeze()

    def content(self) -> dict:
        """A checkpoint: an ordinary network, and under "resume" what only training needs."""
        resume = {
            "phase": self.phase,
            "ternarizer": self.ternarizer.state_dict(),
            "gamma": self.gamma,
            "strength": self.ternarizer.gamma,  # how far it has risen
            "codes": self.codes,
            "optimizer": self.step.optimizer.state_dict(),
            "step": self.step.state_dict(),
        }
        return network_content(self.network, self.spec, inputs.describe(self.data), resume=resume)

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
        sizes = self.sizes.figures(self.network)
        reached = {"on_target": self.goal.reached(), "gamma": self.gamma} if self.goal else {}
        if self.settings.rising and not self.ternarizer.frozen:
            gamma = self.ternarizer.gamma  # an epoch of a smaller one must not become the best
            reached = {"on_target": gamma == self.gamma} | reached | {"gamma": gamma}
        bits = self.settings.point.act_bits
        asked = {"act_bits": bits} if bits else {}
        more = {"layers": layers, **self.step_sizes.figures()}
        return {**self.zeros(), **sizes, **reached, **asked, **more}

    def zeros(self) -> dict[str, float]:
        """Under the names of ZEROS."""
        return {
            "zeros": self.ternarizer.zeros(),
            "zeros_all": 100 * zero_share(self.network.parameters()),
        }

    def warn(self, what: str, subjects: list[str]) -> None:
        """Log a warning that names the subjects it was not logged for before."""
        new = [subject for subject in subjects if (what, subject) not in self.reported]
        self.reported |= {(what, subject) for subject in new}
        if new:
            self.run.log(f"warning: {what}: {', '.join(new)}")


def log_accuracy(what: str, network: nn.Module, data: Data, run: Run) -> None:
    """Validation accuracy of a network as it is now."""
    scores = evaluate(network, data.val.epoch(0), classes=data.classes, total=len(data.val))
    run.log(f"{what}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %")


def quantize_point(
    settings: Quantizing,
    request: RunRequest,
    checkpoint: Checkpoint,
    spec: NetworkSpec,
    data: Data,
    device: torch.device,
    sizes: Sizes,
) -> History:
    """Ternarize (or prune) the network of a checkpoint, in the folder of the request. The result in
    `best.pt` is an ordinary network with ordinary keys."""
    network = load_network(checkpoint, spec)
    require_fit(network, data)
    network = lay_out(network, device, channels_last=settings.recipe.channels_last)
    if settings.prune:
        names, first = pruned_names(network, families=settings.prune), "pruning"
        fixed = freeze_quantized(network)
    else:
        family, first, fixed = table_row(spec.model).family, "ternary", []
        names = ternarized_names(network, family=family, pattern=settings.ternarize)
    require_trainable(network, names)
    point, others = settings.point, settings.act_bits_other
    quantized, present = fixed if settings.prune else names, spec.activations
    bits = activation_bits.missing_bits(network, quantized, present, bits=point.act_bits,
                                        others=others)  # fmt: skip

    def check(state: dict) -> None:
        ignore = settings.ignore_class_names or request.override
        inputs.require_same_classes(state, data, ignore=ignore)
        require_continuable(state, names=names, levels=settings.levels, epochs=settings.epochs)
        activation_bits.require_same(state, present, bits)

    run = Run(request, spec=spec, phases=(first, "frozen"), check=check, units=ZEROS)
    if measure := settings.eval and not run.state:
        log_accuracy("before quantization", network, data, run)
    keep = codes_to_keep(network, names, settings.levels) if not settings.epochs else {}
    ternarizer = Ternarizer(network, names, initial_scale=point.initial_scale,
                            gamma=0.0 if settings.rising else point.gamma,
                            kmeans=settings.centroids > 0, prune=bool(settings.prune),
                            ttq_threshold=point.ttq_threshold, levels=settings.levels)  # fmt: skip
    put_back(network, keep)
    if run.state:
        activation_bits.adopt(network, run.state)
    elif settings.start:
        warm_start(settings.start, network, ternarizer, run)
    elif bits:
        run.log(activation_bits.begin(network, bits, data.train.epoch(0), seed=settings.seed))
    weights = f"{len(names)} layers with {ternarizer.latent.numel():,} weights"
    stay = f", {len(fixed)} quantized layers stay as they are" if fixed else ""
    run.log(f"{request.folder.name}: {weights}{stay}, on {device}")
    job = Quantization(run, network, ternarizer, settings, spec, data, sizes)
    if measure:
        zeros = ", ".join(f"{share:.2f}{ZEROS[name]}" for name, share in job.zeros().items())
        log_accuracy(f"quantized, not trained (zeros: {zeros})", network, data, run)
    job.train(first, range(settings.epochs))
    if settings.retrain_epochs:
        job.freeze()
        job.train("frozen", range(settings.epochs, settings.epochs + settings.retrain_epochs))
    report(run, network, data)
    return run.close()
