"""Filters that are computed and then not used: what only a look at the whole network tells.

A filter whose result goes nowhere but through channels that are constant anyway (a depthwise filter
without weights, a BatchNorm without scale), or that nothing reads, may as well be without weights.
"""

from copy import deepcopy

import torch
from torch import nn

from model_scoring.dead_channels.channel_graph import graph_of
from model_scoring.dead_channels.operator_rules import follow
from model_scoring.dead_channels.removal import dead_channels
from model_scoring.tracing.operation_record import Trace


def may_be_unread(trace: Trace) -> bool:
    """Whether some channel is constant or meets no weights, without which all filters are read."""
    layers = (record.weights.counts for record in trace.records if record.weights is not None)
    return any(record.constants is not None for record in trace.records) or any(
        not bool((counts > 0).any(1).all()) for counts in layers
    )


@torch.no_grad()
def without_unread(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """The network in evaluation mode, or a copy that computes the same for images of (channels,
    height, width) with the weights of unread filters set to zero; itself where its code is not
    understood."""
    copy = deepcopy(network).cpu().double().eval()
    graph = graph_of(copy)
    flow = None if graph is None else follow(copy, graph, shape)
    if flow is None:
        return network
    gone, found = dead_channels(flow), False
    for layer in flow.layers:
        if isinstance(layer.module, nn.Conv2d | nn.Linear):
            unread = layer.module.weight[gone[layer.outputs]]
            found |= bool(unread.any())
            layer.module.weight[gone[layer.outputs]] = 0
    return copy.float() if found else network
