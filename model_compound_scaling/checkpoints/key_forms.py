"""Where a file keeps a state dict, and the forms its keys may take on: as saved, without what
wrapped the network, in this project's style, with weights in place of what they are computed from.
A network says which one fits."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from data.errors import some
from model_compound_scaling.networks import efficientnet_keys
from model_compound_scaling.networks.permanent_weights import computed

# attributes in which DDP and averages, torch.compile, FSDP, activation checkpoints keep a network
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NAMES = ("model", "net", "network")  # what training programs call it
HOLDERS = (*WRAPPERS, *NAMES, "backbone")  # as attributes, beside other tensors of their own
# keys of files, the first that is there is taken; then those that hold an average
STATE_DICTS = ("state_dict", "model_state_dict", *NAMES, "weights", "params", "module")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model",
            "ema", "params_ema", "averaged_model", "swa_model", "swa_state_dict",
            "shadow", "shadow_params")  # fmt: skip
NESTED = 4  # dicts in dicts
DEEPEST = 8  # wrappers around wrappers
MOST_BRANCHES = 20  # more names than programs give to whole networks in one file

State = dict[str, Tensor]


class Form(NamedTuple):
    """A state dict under some keys; its key style, for EfficientNets; what is to be said of it."""

    state: State
    style: str | None
    lines: tuple[str, ...] = ()


def state_dict(content: dict) -> tuple[State, list[str]]:
    """A file's state dict, empty if it holds none, and what is to be said of averages in it."""
    state, held = _held(content)
    averages = {key: content[key] for key in AVERAGES if key in content and key != held}
    others = [k for k, v in averages.items() if _held(v)[0] or unnamed_tensors({k: v})]
    taken = f"in {held!r}" if held else "beside it"
    lines = [f"taken are the weights {taken}, not those in {key!r}" for key in others]
    return state, lines or [f"taken are the averaged weights in {held!r}"] * (held in AVERAGES)


def _held(content: object, depth: int = NESTED) -> tuple[State, str]:
    """The state dict and the key that holds it, "" if it is the content itself."""
    if not isinstance(content, dict) or not depth:
        return {}, ""
    for key in (*STATE_DICTS, *AVERAGES):
        if inner := _held(content.get(key), depth - 1)[0]:
            return inner, key
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}, ""


def unnamed_tensors(content: object) -> str:
    """The key of a list of tensors in a file, or in a dict of it, "" if there is none."""
    parts = [content, *content.values()] if isinstance(content, dict) else []
    items = [item for part in parts if isinstance(part, dict) for item in part.items()]
    lists = ((key, value) for key, value in items if isinstance(value, list | tuple) and value)
    return next((str(key) for key, value in lists if isinstance(value[0], Tensor)), "")


def branches(state: State) -> Iterator[tuple[str, State]]:
    """What is below each first name of the keys where there are a few, in all forms."""
    for inner, _ in _unwrapped(state):
        below: dict[str, State] = {}
        for key, tensor in inner.items():
            name, _, rest = key.partition(".")
            below.setdefault(name, {})[rest] = tensor
        if 1 < len(below) <= MOST_BRANCHES:
            yield from below.items()


def forms(state: State) -> Iterator[Form]:
    """All forms, the keys as they are first."""
    for unwrapped, lines in _unwrapped(state):
        plain, names = computed(unwrapped)
        line = f"{some(names)} computed from masks or norms, which are left out"
        versions = [(unwrapped, lines), (plain, (*lines, line))]
        for tensors, said in versions if names else versions[:1]:
            style = efficientnet_keys.key_style(set(tensors))
            yield Form(tensors, style, said)
            renamed = efficientnet_keys.to_torchvision_keys(tensors)
            if renamed is not tensors and len(renamed) == len(tensors):
                yield Form(renamed, style, said)


def _unwrapped(state: State, depth: int = DEEPEST) -> Iterator[tuple[State, tuple[str, ...]]]:
    """The state dict; without the prefix that all keys share; only what is below a holder's name;
    the same again of these; without wrappers anywhere."""
    yield state, ()
    if not depth:
        return
    first = next(iter(state)).partition(".")[0]
    shared = all(key.startswith(f"{first}.") for key in state)
    for name in [first] if shared else HOLDERS:
        prefix = f"{name}."
        below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if below:
            others = [key for key in state if not key.startswith(prefix)]
            said = (f"only what is below {name!r} is taken, not {some(others)}",) if others else ()
            for inner, more in _unwrapped(below, depth - 1):
                yield inner, (*said, *more)
    without = {".".join(p for p in k.split(".") if p not in WRAPPERS): v for k, v in state.items()}
    if len(without) == len(state) and without.keys() != state.keys():
        yield without, ()


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How a state dict differs from a network's, one phrase each; empty if it fits."""
    needed = (key for key in expected if not key.endswith("num_batches_tracked"))
    phrases = [f"{key} is missing" for key in needed if key not in state]
    phrases += [f"{key} does not belong" for key in state if key not in expected]
    shapes = [(k, tuple(state[k].shape), tuple(expected[k].shape)) for k in expected if k in state]
    return phrases + [f"{key} is {found}, not {own}" for key, found, own in shapes if found != own]


def fitting(state: State, expected: Mapping[str, Tensor]) -> tuple[Form, list[str]]:
    """The form that differs least from a network's state dict, the first of equals, and how."""
    fits = ((form, differences(form.state, expected)) for form in forms(state))
    return min(fits, key=lambda fit: len(fit[1]))
