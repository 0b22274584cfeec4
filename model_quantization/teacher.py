"""The network from which a quantized one learns."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from data import Data, UserError
from data.class_names import match_classes
from model_compound_scaling.checkpoints import Checkpoint, load_network, read_checkpoint
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.machine import lay_out
from model_compound_scaling.networks.logits import Logits
from model_compound_scaling.networks.registry import NetworkSpec
from model_compound_scaling.training import Recipe, require_fit
from model_compound_scaling.training.distillation import Teacher


def open_teacher(path: Path, data: Data, device: torch.device, recipe: Recipe) -> nn.Module:
    """The network in a checkpoint as a teacher, see `make_teacher`. CheckpointError if it has other
    classes or cannot take the images."""
    checkpoint = read_checkpoint(path)
    try:
        return make_teacher(checkpoint, network_spec(checkpoint), data, device, recipe)
    except UserError as error:
        raise CheckpointError(f"--teacher {path}: {error}") from None


def make_teacher(
    checkpoint: Checkpoint, spec: NetworkSpec, data: Data, device: torch.device, recipe: Recipe
) -> nn.Module:
    """What maps the student's images to logits of its classes, though the teacher may number them
    otherwise and know its images by another mean and deviation."""
    network, known = load_network(checkpoint, spec), checkpoint.data
    require_fit(network, data)
    names = known.get("class_names", ())
    order = torch.tensor(match_classes(data.class_names, names).labels, device=device)
    statistics = data.mean, data.std, known.get("mean", data.mean), known.get("std", data.std)
    mean, std, own_mean, own_std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1) for values in statistics
    )
    network = lay_out(network, device, channels_last=recipe.channels_last)
    logits = Logits(network, data.classes)
    teacher = Teacher(logits, std / own_std, (mean - own_mean) / own_std, order)
    return torch.compile(teacher) if recipe.compile else teacher


def fingerprint(path: Path) -> str:
    """What makes another teacher another configuration, wherever its file lies."""
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
