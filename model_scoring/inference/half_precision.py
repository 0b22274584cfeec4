"""Half precision: evaluate in 16 bit, with the machine's own operations where it has them."""

import copy

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from model_compound_scaling.networks.quantizers import quantizers


def _rounded(value: object) -> object:
    """float32 tensors rounded to what float16 can hold; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.half().float()
    return value


class _RoundResults(TorchFunctionMode):
    """Rounds the result of every operation, functional ones included."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return tree_map(_rounded, func(*args, **(kwargs or {})))


class InType(nn.Module):
    """A network that computes in another type than that of the images."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype))


class Rounding(nn.Module):
    """float32 arithmetic with weights and activations rounded to float16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # stored values once; results are rounded as they come
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.dtype == torch.float32:
                    tensor.copy_(_rounded(tensor))

    def forward(self, x: Tensor) -> Tensor:
        with _RoundResults():
            return self.network(_rounded(x))


def _native_types(device: torch.device) -> list[torch.dtype]:
    """16-bit types the processor computes with; others would be 50 times slower than float32."""
    if device.type == "cuda":
        return [torch.float16]
    names, mkldnn = {"fp16": torch.float16, "bf16": torch.bfloat16}, torch.ops.mkldnn
    checks = {name: getattr(mkldnn, f"_is_mkldnn_{name}_supported", bool) for name in names}
    return [names[name] for name, supported in checks.items() if supported()]


def half_precision(network: nn.Module, image: Tensor) -> tuple[nn.Module, str]:
    """A 16-bit copy of a network, tried with the image (1, C, H, W), and how it computes. One whose
    activations have few bits stays as it is: 16 bit would take another code wherever a number is
    near to where they change, which is another network than that of its files."""
    if quantizers(network):
        return network, "float32, as its activations have few bits"
    for dtype in _native_types(image.device):
        candidate = InType(copy.deepcopy(network).eval(), dtype)
        try:
            with torch.no_grad():
                candidate(image)
        except RuntimeError:  # an operation of the network does not exist in this type
            continue
        return candidate, str(dtype).removeprefix("torch.")
    rounding = Rounding(copy.deepcopy(network).eval())
    return rounding, "float32 with weights and activations rounded to float16"
