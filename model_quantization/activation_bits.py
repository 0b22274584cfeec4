"""Activations of few bits in training: which layers' inputs, with what sign and first steps, and
how the steps are learned (LSQ, arXiv 1902.08153)."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from data.errors import UserError, some
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.machine import processes
from model_compound_scaling.networks.permanent_weights import copied
from model_compound_scaling.networks.quantizers import quantize_inputs, quantizers
from model_compound_scaling.networks.quantizers.layer_inputs import LAYERS
from model_compound_scaling.networks.registry import Activations

FIRST_BATCHES = 4  # which tell signs and first steps
# Of the weights' learning rate, for shares of steps. Measured, as Adam undoes LSQ's scale of their
# gradients: ten is worse at 2 to 4 bits (docs/benchmarks.md)
STEP_RATE = 30.0


def layer_bits(network: nn.Module, names: list[str], *, bits: int, others: int) -> dict[str, int]:
    """Bits for the input of each convolution and linear layer, by its name: `bits` where its weight
    is one of these parameters, `others` elsewhere."""
    weights = {network.get_parameter(name) for name in names}
    layers = ((name, m) for name, m in network.named_modules() if isinstance(m, LAYERS))
    return {n: bits if m._parameters.get("weight") in weights else others for n, m in layers}


def _other(activations: Activations, wanted: dict[str, int]) -> bool:
    return any(wanted.get(layer) != int(kind[1:]) for layer, kind in activations.items())


def missing_bits(
    network: nn.Module, names: list[str], present: Activations, *, bits: int | None, others: int
) -> dict[str, int]:
    """As `layer_bits`, empty if the network is to keep the activations that are `present`: none are
    asked for, or just those. UserError if it has others."""
    wanted = layer_bits(network, names, bits=bits, others=others) if bits else {}
    if not (wanted and present):
        return wanted
    if _other(present, wanted):
        raise UserError(
            f"--act-bits {bits}: the network has activations of other bits already ("
            f"{some([f'{layer} {kind}' for layer, kind in present.items()])}): leave --act-bits "
            "out, or start from the checkpoint before it got them"
        )
    return {}


def require_same(state: dict, present: Activations, wanted: dict[str, int]) -> None:
    """CheckpointError for a run's checkpoint whose network has other activations than are `present`
    where the run starts and `wanted` of it."""
    known = state["network"].get("activations", {})
    if _other(known, wanted) or not known if wanted else known != present:
        raise CheckpointError(
            "the checkpoint's network has other activations than this run: leave --act-bits and "
            "--act-bits-other as they were, or start over with --no-resume"
        )


def adopt(network: nn.Module, state: dict) -> None:
    """Give a network without quantizers those that a run's checkpoint describes."""
    if not quantizers(network):
        quantize_inputs(network, state["network"].get("activations", {}))


class InputsNotFound(UserError):
    """There are layers whose inputs cannot be quantized."""

    shared = True


class _Seen:
    """What a network's layers take, in sums: of |x|, of negative ones, of all numbers."""

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        self.network = copied(network).train().requires_grad_(False)  # whose statistics may change
        self.sums: dict[str, Tensor] = {}
        self.images: set[str] = set()  # layers that take the image
        layers = dict(self.network.named_modules())
        for name in names:
            layers[name].register_forward_pre_hook(self.hook(name))
        for module in layers.values():  # the image is what has a gradient that no weights cut off
            if any(p.dim() > 1 for p in module.parameters(recurse=False)):
                module.register_forward_hook(lambda _, args, result: _cut_off(result))

    def hook(self, name: str):  # type: ignore[no-untyped-def]
        """A forward pre-hook that looks at a layer's input."""

        def look(layer: nn.Module, args: tuple) -> None:
            if args and isinstance(x := args[0], Tensor):
                if x.requires_grad:
                    self.images.add(name)
                x = x.detach()
                figures = x.abs().sum(dtype=torch.float64), (x < 0).sum(), torch.tensor(x.numel())
                found = torch.stack([figure.double().to(x.device) for figure in figures])
                self.sums[name] = self.sums.get(name, 0) + found

        return look

    @torch.enable_grad()
    def look_at(self, images: Tensor) -> None:
        """A forward pass; images (N, C, H, W)."""
        # neither a leaf, which in-place operations could not change, nor the data set's own
        self.network(images.clone().requires_grad_() * 1)


def _cut_off(result: object) -> object:
    return tree_map_only(Tensor, Tensor.detach, result)


def begin(
    network: nn.Module, bits: dict[str, int], batches: Iterable[tuple[Tensor, Tensor]], *, seed: int
) -> str:
    """Quantize the inputs of the layers of `bits`, but for those that take the image, in place, by
    what the network takes in training: signed where anything is negative, first steps as LSQ's. The
    same in all processes, each of which has its share of the batches. Returns a line that says
    what was done. InputsNotFound if some is not to be found."""
    torch.manual_seed(seed)  # for dropout
    seen = _Seen(network, bits)
    for images, _ in islice(batches, FIRST_BATCHES):
        seen.look_at(images)
    if missing := [name for name in bits if name not in seen.sums]:
        raise InputsNotFound(
            f"--act-bits: the input of {some(missing)} is not to be found, as the network's code "
            "does not call the layer itself: leave out --act-bits, or call it in the builder's code"
        )
    names = [name for name in bits if name not in seen.images]
    if not names:
        raise InputsNotFound("--act-bits: every layer of the network takes the image alone")
    sums = processes.all_reduce_sum(torch.stack([seen.sums[name] for name in names]))
    total, negative, count = sums.T
    means, signed = (total / count).float(), (negative > 0).tolist()
    kinds = {n: f"{'i' if s else 'u'}{bits[n]}" for n, s in zip(names, signed, strict=True)}
    added = quantizers(quantize_inputs(network, kinds))
    for name, mean in zip(names, means, strict=True):
        added[name].start(mean)
    count = "; ".join(f"{n} {kind}" for kind, n in Counter(kinds.values()).most_common())
    return f"activations of few bits (u unsigned, i signed): {count}; the image's stay as they are"


class StepSizes:
    """A network's learned steps in training, without weight decay. An update is a share of the
    step, whatever its size, and at most half of it is lost at once, so that all stay above 0."""

    def __init__(self, network: nn.Module) -> None:
        self.quantizers = quantizers(network)
        self.steps = [quantizer.step for quantizer in self.quantizers.values()]

    def groups(self, groups: list[dict], *, lr: float) -> list[dict]:
        """A ternarizer's parameter groups, and if there are steps one more: theirs, at `lr`."""
        if not self.steps:
            return groups
        own = set(self.steps)
        for group in groups:
            group["params"] = [p for p in group["params"] if p not in own]
        return [*groups, {"params": self.steps, "lr": lr, "weight_decay": 0.0}]

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Before the optimizer's step."""
        self.before = torch._foreach_mul(self.steps, 1.0) if self.steps else []

    @torch.no_grad()
    def finish_step(self) -> None:
        """After it: what was added is the share."""
        if self.steps:
            shares = torch._foreach_sub(self.steps, self.before)
            torch._foreach_clamp_min_(shares, -0.5)
            torch._foreach_copy_(
                self.steps, torch._foreach_addcmul(self.before, self.before, shares)
            )

    def figures(self) -> dict[str, list[dict]]:
        """Of each quantized input its bits, sign and step; nothing if there is none."""
        if not self.steps:
            return {}
        steps = torch.stack([step.detach() for step in self.steps]).tolist()
        rows = zip(self.quantizers.items(), steps, strict=True)
        return {"activations": [{"layer": name, "bits": q.bits, "signed": q.signed, "step": step}
                                for (name, q), step in rows]}  # fmt: skip
