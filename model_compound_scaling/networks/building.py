"""From a description to a network."""

import torch
from torch import Tensor, nn

from data.errors import UserError
from model_compound_scaling.networks.narrowing import WidthsError, narrowed
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
    return narrowed(network, spec.widths)


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
