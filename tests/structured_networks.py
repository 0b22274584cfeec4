"""Networks of one's own, for `--model structured_networks:NAME`: what they return is no plain
tensor, or not all of their parameters get a gradient."""

import os
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

Outputs = namedtuple("Outputs", "aux_logits logits")


@dataclass
class Found:
    features: Tensor
    logits: Tensor


class ModelOutput(OrderedDict):
    """As the transformers package has it."""


FORMS = {  # (features, other features, logits, of an auxiliary head) -> what is returned
    "plain": lambda f, g, y, a: y,
    "logits_first": lambda f, g, y, a: (y, f),
    "features_first": lambda f, g, y, a: (f, y),
    "in_a_list": lambda f, g, y, a: [y, f, a],
    "in_a_dict": lambda f, g, y, a: {"auxiliary": a, "logits": y},
    "named": lambda f, g, y, a: Outputs(a, y),
    "in_a_dataclass": lambda f, g, y, a: Found(f, y),
    "in_an_object": lambda f, g, y, a: SimpleNamespace(aux=a, logits=y),
    "model_output": lambda f, g, y, a: ModelOutput(loss=None, hidden=(f, g), logits=y),
    "nested": lambda f, g, y, a: {"maps": [g, {"last": f}], "heads": [(y, a)]},
    "pixels": lambda f, g, y, a: y[:, :, None, None],
    "one_more_dimension": lambda f, g, y, a: y[None],
}


class Structured(nn.Module):
    """Two convolutions and two heads; `form` is a key of FORMS."""

    def __init__(self, form: str, num_classes: int) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.aux, self.head = nn.Linear(8, num_classes), nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> object:
        maps = self.first(x).relu()
        features = self.second(maps).relu().mean((2, 3))
        auxiliary = self.aux(maps.mean((2, 3)))
        return FORMS[self.form](features, maps, self.head(features), auxiliary)


BRANCHES = {  # (training steps begun, process) -> whether the branch is used
    "always": lambda step, rank: True,
    "never": lambda step, rank: False,
    "at_first": lambda step, rank: step <= 2,
    "later": lambda step, rank: step > 2,
    "in_one_process": lambda step, rank: rank == 0,
    "in_turns": lambda step, rank: (step + rank) % 2,
}


class Branch(nn.Module):
    """One whose `extra` layer is used as BRANCHES say: each a way to leave parameters without
    gradient, `frozen` parameters have none at all. What the branch adds is 0, and only it gets a
    gradient from that, so that all else is the same whoever uses it."""

    def __init__(self, when: str, num_classes: int) -> None:
        super().__init__()
        self.when, self.steps = BRANCHES[when], 0
        self.first, self.extra = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.frozen, self.head = nn.Linear(8, 8), nn.Linear(8, num_classes)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        features = self.first(x).sigmoid().mean((2, 3))
        features = features + self.frozen(features)
        if self.when(self.steps, int(os.environ.get("RANK", "0"))):
            extra = self.extra(features.detach())
            features = features + extra - extra.detach()
        return self.head(features)


def __getattr__(name: str) -> partial:
    if name in FORMS:
        return partial(Structured, name)
    if name in BRANCHES:
        return partial(Branch, name)
    raise AttributeError(name)


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Always the same noise."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
