"""Weights that are computed anew in each forward pass, as pruning masks, weight and spectral
normalisation are by hooks or parametrizations, made ordinary parameters: in networks, where torch
evaluates any of them, and in state dicts, for those whose arithmetic is known."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator

import torch
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
    found = {
        (module, name): (remove, f"{prefix}.{name}".removeprefix("."))
        for prefix, module in network.named_modules()
        for name, remove in _computed_by_hooks(module)
    }
    # removing writes into the original, which other layers may share: each gets its own before
    originals = {place: _own_original(*place) for place in found}
    for (module, name), (remove, _) in found.items():
        remove(module, name)
    tie_equal(originals)
    for module in was_training:
        module.training = True
    return [name for _, name in found.values()]


def _computed_by_hooks(module: nn.Module) -> Iterator[tuple[str, Callable]]:
    """Names of a module's computed tensors, and what leaves each behind as a parameter."""
    for hook in list(module._forward_pre_hooks.values()):
        for kind, attribute, remove in HOOKS:
            if isinstance(hook, kind):
                yield getattr(hook, attribute), remove
    if parametrize.is_parametrized(module):
        for name in module.parametrizations:
            yield name, parametrize.remove_parametrizations


def _own_original(module: nn.Module, name: str) -> nn.Parameter | None:
    """`_own` of the parameter that a tensor is computed from, if it is one parameter."""
    if parametrize.is_parametrized(module, name):
        return _own(module.parametrizations[name], "original")
    return _own(module, f"{name}_orig")


def _own(module: nn.Module, name: str) -> nn.Parameter | None:
    """Give a module its own copy of a parameter, which others may share; returns the shared one."""
    if (shared := module._parameters.get(name)) is not None:
        copy = shared.detach().clone()
        module._parameters[name] = nn.Parameter(copy, requires_grad=shared.requires_grad)
    return shared


Ties = dict[tuple[nn.Module, str], nn.Parameter | None]  # a parameter's place -> what was there


def tie_equal(ties: Ties) -> None:
    """Tie again what was untied and has the same values all the same."""
    versions: dict[nn.Parameter, list[nn.Parameter]] = {}
    for (module, name), shared in ties.items():
        own = module._parameters.get(name)
        if shared is None or own is None or own.is_meta:
            continue
        known = versions.setdefault(shared, [shared])
        same = next((p for p in known if torch.equal(p, own)), own)
        module._parameters[name] = same
        known.append(same)


def tied_apart(network: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """Names of tensors whose values differ in a state dict from those of an earlier name, although
    both are one tensor of the network; that name."""
    first, apart = {}, {}
    for key, tensor in network.state_dict().items():
        if key in state and tensor.numel():
            memory = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            other = first.setdefault(memory, key)
            if not torch.equal(*(state[k].to(tensor.dtype) for k in (key, other))):
                apart[key] = other
    return apart


def untie(network: nn.Module, names: Iterable[str]) -> Ties:
    """Give each of these parameters memory of its own."""
    split = [name.rpartition(".") for name in names]
    places = [(network.get_submodule(path), attribute) for path, _, attribute in split]
    return {place: _own(*place) for place in places}


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
