"""One training step: forward, loss, backward, and an update that a non-finite gradient skips."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_compound_scaling.networks.logits import logits_of
from model_compound_scaling.training.distillation import Distillation
from model_compound_scaling.training.evaluation import hits
from model_compound_scaling.training.recipe import AMP, Recipe
from model_compound_scaling.training.weight_average import Average


@dataclass(eq=False, repr=False)
class TrainStep:
    """Updates a network from one batch. A loss or gradient that is not finite stops all updates
    from then on, on the device, where nothing has to wait for it; `first_bad` is the number of that
    step, -1 while all is well. With fp16, whose scaled gradients may overflow, only that step is
    skipped, and what counts is the loss, or gradients that no scale helps."""

    forward: Callable[[Tensor], object]  # the network, or what wraps or compiles it
    _: KW_ONLY
    network: nn.Module
    optimizer: torch.optim.Optimizer  # a fused one: it heeds `found_inf`
    classes: int
    recipe: Recipe = field(default_factory=Recipe)
    prepare: Callable[[], None] | None = None  # called before the optimizer's step
    finish: Callable[[], None] | None = None  # and after it
    distillation: Distillation | None = None
    averaged: Average | None = None  # an exponential moving average, updated last

    def __post_init__(self) -> None:
        self.number = -1  # of the last call
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.first_bad = torch.full((), -1, device=device)
        recipe, name = self.recipe, AMP[self.recipe.amp]
        self.dtype = name and getattr(torch, name)
        self.scaler = torch.amp.GradScaler(device.type) if name == "float16" else None
        self.mix = None  # (images, labels) -> the same, mixed in pairs
        if recipe.mixup or recipe.cutmix:
            from torchvision.transforms import v2  # takes 1.5 s: other steps need not wait for it

            shares = ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
            mixes = [mix(alpha=a, num_classes=self.classes) for mix, a in shares if a]
            self.mix = v2.RandomChoice(mixes)

    def __call__(
        self, images: Tensor, labels: Tensor, *, seed: int, number: int, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(mean loss, hits) of images (N, C, H, W) and labels (N,), before the update. All that is
        random in the step depends on `seed`; `number` is the step's name in messages; `weight` is
        this process' share of the images times the number of processes."""
        self.number = number
        torch.manual_seed(seed)
        images, targets = self.mix(images, labels) if self.mix else (images, labels)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            output = self.forward(images)
            taught = self.distillation and self.distillation.teacher(images)
        logits = logits_of(output, len(images), self.classes).float()  # no auxiliary ones
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        if self.distillation:
            loss = self.distillation.loss(loss, logits, taught)
        self.network.zero_grad()
        scaled = self.scaler.scale(loss * weight) if self.scaler else loss * weight
        # a bad loss makes every gradient bad, in all processes, whatever its derivatives are
        scaled.backward(torch.where(scaled.isfinite(), 1.0, torch.nan).to(scaled.dtype))
        if self.prepare:
            self.prepare()
        self._update(loss, number)
        if self.finish:
            self.finish()
        if self.averaged:
            self.averaged.update()
        return loss.detach(), hits(logits.detach(), labels, 1)

    def _update(self, loss: Tensor, number: int) -> None:
        if self.scaler:  # gradients may overflow: it skips them and scales down
            self.scaler.step(self.optimizer)
            self.scaler.update()
            # halved again and again: it is not the scale that makes the gradients infinite
            bad = ~loss.detach().isfinite() | (self.scaler._scale < 1)
        else:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            bad = ~torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite().all()
        self.first_bad = torch.where(bad & (self.first_bad < 0), number, self.first_bad)
        if not self.scaler:
            # what the gradient scaler, too, tells fused optimizers, which then change nothing
            self.optimizer.grad_scale = None
            self.optimizer.found_inf = (self.first_bad >= 0).float()
            self.optimizer.step()

    def state_dict(self) -> dict:
        """What a resumed step needs beside the networks."""
        started = self.averaged is not None and self.averaged.started
        return {"scaler": self.scaler and self.scaler.state_dict(), "average_started": started}

    def load_state_dict(self, state: dict) -> None:
        """Continue where another step stopped."""
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.averaged:
            self.averaged.started = state["average_started"]
