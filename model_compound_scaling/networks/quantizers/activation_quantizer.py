"""Learned step size quantization of activations (LSQ; Esser et al. 2020, arXiv 1902.08153)."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from model_compound_scaling.networks.quantizers import BITS


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Smallest and largest code, -Q_n and Q_p of section 2: 0 ... 2^b - 1, or two's complement."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def first_step(x: Tensor, high: int) -> Tensor:
    """A step, (), to begin with: 2 mean|x| / sqrt(Q_p), section 2.1; x of any shape, `high` = Q_p.
    Positive even if all x are 0."""
    mean = x.detach().abs().mean(dtype=torch.float32)
    return (2 * mean / math.sqrt(high)).clamp(min=torch.finfo(torch.float32).tiny)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products, in float32 at least; one pass without a temporary."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.flatten().to(wide), b.flatten().to(wide))


class _LearnedStep(torch.autograd.Function):
    """The straight-through estimator of LSQ."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        # in-place, and saved is what other operations save anyway: these passes are all it costs
        result = (x / step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, step, result)
        ctx.range = low, high
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, step, result), (low, high) = ctx.saved_tensors, ctx.range
        # equation 5: the gradient where x / step is inside the range, else 0; new memory is what
        # costs most, so x / step makes room for it
        scaled, to_x = x / step, torch.ops.aten.hardtanh_backward.grad_input
        to_x = to_x(gradient, scaled, low, high, grad_input=scaled)
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None
        # equation 3: the code, less x / step where x is inside the range
        slopes = (_dot(gradient, result) - _dot(to_x, x)) / step
        features = x[:1].numel()  # of one image; section 2.2 for the scale
        return to_x, slopes / math.sqrt(features * high), None, None


def quantize(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """clamp(round(x / step), low, high) * step, halves to even; x (N, ...) of any float type, step
    (). Gradients are those of LSQ."""
    if torch.is_grad_enabled() and (x.requires_grad or step.requires_grad):
        return _LearnedStep.apply(x, step, low, high)
    # plain operations, which exporters and traces read
    return (x / step).round().clamp(low, high) * step


class ActivationQuantizer(nn.Module):
    """Activations of `bits` bits, 2 to 8, times a learned `step`; `signed` in two's complement,
    else not below 0. The step is 1 until `start` or a checkpoint sets it."""

    def __init__(self, bits: int, signed: bool = False) -> None:
        super().__init__()
        if bits not in BITS:
            raise ValueError(f"{bits} bits: activations take {BITS[0]} to {BITS[-1]}")
        self.bits, self.signed = bits, signed
        self.low, self.high = code_range(bits, signed=signed)
        self.step = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the step by the activations of a first batch."""
        self.step.copy_(first_step(x, self.high))

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x, self.step, self.low, self.high)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}"
