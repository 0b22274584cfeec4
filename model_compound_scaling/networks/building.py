"""From a description to a network."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from data.errors import UserError
from model_compound_scaling.networks.narrowing import WidthsError, narrowed
from model_compound_scaling.networks.permanent_weights import make_permanent
from model_compound_scaling.networks.quantizers import quantize_inputs
from model_compound_scaling.networks.registry import REGISTRY, NetworkSpec, importable, table_row


def build(spec: NetworkSpec) -> nn.Module:
    """A freshly initialised network."""
    row = table_row(spec.model)
    try:
        builder = importable(row.builder)
        network = builder(num_classes=spec.num_classes, **row.arguments, **spec.arguments)
    except Exception as error:
        if spec.model in REGISTRY:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"--model {spec.model} cannot be built: {reason}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"--model {spec.model} returned a {type(network).__name__}, no nn.Module")
    tensors = (*network.named_parameters(), *network.named_buffers())
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise UserError(
            f"--model {spec.model}: {lazy[0]} has no shape yet, as layers like LazyLinear get one "
            "from their first input: call the network once on an image in its builder"
        )
    if any(t.is_meta for _, t in tensors) and any(map(is_parametrized, network.modules())):
        raise NotImplementedError("torch hides where a parametrization fails for want of values")
    if spec.permanent:
        make_permanent(network)
    return quantize_inputs(narrowed(network, spec.widths), spec.activations)


def require_trainable(network: nn.Module, names: Iterable[str] = ()) -> None:
    """UserError if no parameter is trained, or one of those named is not, or is none."""
    parameters = dict(network.named_parameters())
    frozen = "requires_grad is False: the builder must leave what is trained as it is"
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError(f"the network has no parameter to train; {frozen}")
    for name in names:
        if name not in parameters:
            raise UserError(
                f"{name} is computed by the network's own code and no parameter: choose other "
                "layers with --ternarize"
            )
        if not parameters[name].requires_grad:
            raise UserError(f"{name} cannot be trained; {frozen}")


def skeleton(spec: NetworkSpec) -> nn.Module:
    """The network, where possible without memory for its values."""
    try:
        with torch.device("meta"):
            return build(spec)
    except WidthsError:
        raise
    except (UserError, NotImplementedError):  # constructors that look at values
        return build(spec)


def expected_tensors(spec: NetworkSpec) -> dict[str, Tensor]:
    """Names and shapes of the state dict."""
    return skeleton(spec).state_dict()
