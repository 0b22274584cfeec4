"""EC2T on a whole network: layers in groups, one step for all, and what a run wants to know."""

from functools import partial

import torch
from torch import Tensor, nn

from model_quantization.assignment import size_factor
from model_quantization.ec2t import LayerGroup
from model_quantization.levels import MultiLevelGroup

GROUP = 2**21  # weights per flat vector: few operations, and still friendly to a processor's cache


def grouped(weights: list[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """Consecutive layers of at most `limit` weights together, or one larger layer."""
    groups, room = [], 0
    for weight in weights:
        if not groups or weight.numel() > room:
            groups.append([])
            room = limit
        groups[-1].append(weight)
        room -= weight.numel()
    return groups


class Ternarizer:
    """The quantized layers of one network: `prepare_step` after the backward pass, `finish_step`
    after the optimizer's.

    The network's weights stay ordinary parameters under their ordinary names; the optimizer gets
    `latents` and `centroids` in their place. `gamma` may change at any time. With `ttq_threshold`
    the assignment is that of trained ternary quantization, from centroids of 1; with `levels` of
    5, 7 or 15 there are that many values instead of three.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        *,
        initial_scale: float,
        gamma: float,
        kmeans: bool = False,
        prune: bool = False,
        ttq_threshold: float | None = None,
        levels: int = 3,
    ) -> None:
        self.names, self.gamma, self.frozen = names, gamma, False
        self.ttq_threshold = ttq_threshold
        make_group = partial(LayerGroup, prune=prune)
        if levels > 3:
            make_group = partial(MultiLevelGroup, levels=levels)
        self.weights = [network.get_parameter(name) for name in names]
        self.groups = [make_group(group) for group in grouped(self.weights, GROUP)]
        self.latents = [group.latent for group in self.groups]
        self.centroids = [group.centroids for group in self.groups]
        largest = max(w.numel() for w in self.weights)
        self.deltas = [size_factor(group.segments.counts, largest) for group in self.groups]
        for group in self.groups:
            if ttq_threshold is None:
                group.centroids.mul_(initial_scale)
            else:
                group.centroids.fill_(1)
            if kmeans:
                group.kmeans()
        self.finish_step()

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Gradients of latents and centroids."""
        for group in self.groups:
            group.set_gradients(frozen=self.frozen)

    @torch.no_grad()
    def finish_step(self) -> None:
        """New codes, unless frozen, and the network's new weights."""
        for group, delta in zip(self.groups, self.deltas, strict=True):
            if self.ttq_threshold is not None and not self.frozen:
                group.reassign_ttq(self.ttq_threshold)
            elif not self.frozen:
                group.reassign(self.gamma, delta)
            group.set_values()

    def set_gamma(self, gamma: float) -> None:
        """Assign the present latent weights with another strength."""
        self.gamma = gamma
        self.finish_step()

    @torch.no_grad()
    def freeze(self) -> None:
        """From now on the codes are those of the network's present weights."""
        self.frozen = True
        for group in self.groups:
            group.freeze()

    def codes(self) -> list[Tensor]:
        """Each layer's codes: int8 (n,), a copy."""
        return [c for group in self.groups for c in group.segments.split(group.codes())]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Latents, codes and centroids by layer: what the network's weights do not tell."""
        layers = (layer for group in self.groups for layer in group.state())
        return dict(zip(self.names, layers, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue where another ternarizer of the same network stopped."""
        layers = iter(state[name] for name in self.names)
        for group in self.groups:
            group.load_state([next(layers) for _ in group.weights])

    def figures(self) -> list[dict]:
        """Each layer's figures, see `LayerGroup.figures`, with its name."""
        layers = (layer for group in self.groups for layer in group.figures())
        return [{"layer": n, **f} for n, f in zip(self.names, layers, strict=True)]

    def zeros(self) -> float:
        """Percent of the quantized weights that are zero."""
        zeros = sum(int((group.codes() == 0).sum()) for group in self.groups)
        return 100 * zeros / sum(w.numel() for w in self.weights)
