"""The table of operations, by ATen name, and the way from a network to its steps."""

from collections.abc import Callable

import torch
from torch import nn

from model_scoring.export.c_source.program import layers, planes
from model_scoring.export.c_source.program.graph import INSIDE, QUANTIZE, graph_of
from model_scoring.export.c_source.program.lowering import Lowering, store_at_once
from model_scoring.export.c_source.program.steps import Program

# fmt: off
RULES: dict[str, Callable] = {
    "convolution": layers.convolution, "addmm": layers.linear, "mm": layers.product_of_matrices,
    QUANTIZE: layers.quantize, INSIDE: layers.nothing,
    "_native_batch_norm_legit_no_training": layers.batchnorm,
    "add": layers.add, "sub": layers.difference, "mul": layers.product, "div": layers.quotient,
    **{name: layers.simple(name.upper()) for name in
       ("relu", "sigmoid", "silu", "hardsigmoid", "hardswish", "tanh")},
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), layers.clamp),
    "leaky_relu": layers.leaky_relu, "elu": layers.elu, "gelu": layers.gelu,
    "max_pool2d_with_indices": planes.max_pool, "avg_pool2d": planes.avg_pool, "mean": planes.mean,
    "_adaptive_avg_pool2d": planes.adaptive_avg_pool,
    "adaptive_max_pool2d": planes.adaptive_max_pool,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"), planes.view),
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy"), planes.same),
    "permute": planes.permute, "slice": planes.cut, "select": planes.select, "split": planes.split,
    "split_with_sizes": planes.split, "cat": planes.concatenation, "expand": planes.expand,
    "constant_pad_nd": planes.pad, "getitem": planes.getitem,
}
# fmt: on


@torch.no_grad()
def lower(network: nn.Module, shape: tuple[int, int, int], classes: int | None) -> Program:
    """The steps of a network in evaluation mode on the CPU for an image (channels, height, width).
    Raises UserError if an operation has no kernel, or torch cannot export the network."""
    return store_at_once(Lowering(graph_of(network, shape, classes), shape).run(RULES))
