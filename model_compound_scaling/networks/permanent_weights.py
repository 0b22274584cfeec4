"""Weights that are computed anew in each forward pass, as pruning masks, weight and spectral
normalisation are by hooks or parametrizations, made ordinary parameters: in networks, where torch
evaluates any of them, and in state dicts, for those whose arithmetic is known."""

import copy
import re
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    remove_spectral_norm,
)
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def _without_spectral_norm(module: nn.Module, name: str) -> None:
    remove_spectral_norm(module, name)
    hooks = module._load_state_dict_pre_hooks  # torch looks for its own there, but they are wrapped
    for key, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]


# a kind of hook, its attribute that names the tensor, and what leaves the computed tensor behind
HOOKS: tuple[tuple[type, str, Callable[[nn.Module, str], object]], ...] = (
    (prune.BasePruningMethod, "_tensor_name", prune.remove),
    (WeightNorm, "name", remove_weight_norm),
    (SpectralNorm, "name", _without_spectral_norm),
)


def copied(network: nn.Module) -> nn.Module:
    """A deep copy. torch refuses one of tensors that hooks compute, which both compute anew."""
    attributes = (value for module in network.modules() for value in vars(module).values())
    computed = (v for v in attributes if isinstance(v, Tensor) and not v.is_leaf)
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in computed})


def make_permanent(network: nn.Module) -> list[str]:
    """Make every such tensor what it is in evaluation mode, in place; returns their names."""
    was_training = [module for module in network.modules() if module.training]
    network.eval()  # in training mode, each look at a spectral norm changes it
    names = []
    for prefix, module in list(network.named_modules()):
        hooks = module._forward_pre_hooks.values()
        found = [
            (getattr(hook, attribute), remove)
            for hook in hooks
            for kind, attribute, remove in HOOKS
            if isinstance(hook, kind)
        ]
        if parametrize.is_parametrized(module):
            found += [(n, parametrize.remove_parametrizations) for n in module.parametrizations]
        for name, remove in found:
            remove(module, name)
            names.append(f"{prefix}.{name}".removeprefix("."))
    for module in was_training:
        module.training = True
    return names


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask if mask.shape == weight.shape else None


def _normed(length: Tensor, direction: Tensor) -> Tensor | None:
    """Salimans and Kingma 2016: w = g v / |v|, with a norm for each entry of g."""
    if length.dim() not in (0, direction.dim()):
        return None
    sizes = length.shape or (1,) * direction.dim()
    if any(n not in (1, whole) for n, whole in zip(sizes, direction.shape, strict=True)):
        return None
    over = [d for d, n in enumerate(sizes) if n == 1]
    norm = direction.norm(2, over, keepdim=True) if over else direction.abs()
    return direction * (length / norm)


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """Miyato et al. 2018: W / sigma, with the stored singular vectors: sigma = u W v."""
    if weight.dim() < 2 or (u.numel(), v.numel()) != (len(weight), weight[0].numel()):
        return None
    return weight / (u.flatten() @ weight.flatten(1) @ v.flatten())


# what the parts of a computed tensor are called behind its name; the parts -> the tensor, or None
# where their shapes do not go together: sizes of a foreign file must not multiply
PARTS: dict[tuple[str, ...], Callable[..., Tensor | None]] = {
    ("_orig", "_mask"): _masked,
    ("_orig", "_u", "_v"): _spectral,
    ("_g", "_v"): _normed,
    (".original0", ".original1"): _normed,
    (".original", ".0._u", ".0._v"): _spectral,
}


def computed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict with the tensors in place of their parts, and the names of those tensors."""
    state, names = dict(state), []
    for parts, compute in PARTS.items():
        for stem in [key.removesuffix(parts[0]) for key in state if key.endswith(parts[0])]:
            tensors = [state.get(stem + part) for part in parts]
            if any(t is None or not t.is_floating_point() for t in tensors):
                continue
            if (tensor := compute(*tensors)) is not None:
                names.append(re.sub(r"(^|\.)parametrizations\.", r"\1", stem))
                for part in parts:
                    del state[stem + part]
                state[names[-1]] = tensor
    return state, names
