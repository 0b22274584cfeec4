"""EC2T on a network: what a training loop calls, and what a run wants to know."""

from dataclasses import KW_ONLY, InitVar, dataclass

import torch
from torch import Tensor, nn

from model_quantization.ec2t.multilevel_layers import MultiLevelLayers
from model_quantization.ec2t.ternary_layers import TernaryLayers


@dataclass(eq=False, repr=False)
class Ternarizer:
    """The quantized layers of one network: `prepare_step` after the backward pass, `finish_step`
    after the optimizer's. The network's weights stay ordinary parameters under their ordinary
    names, those in `names`; the optimizer gets `latent` and `centroids` in their place."""

    network: InitVar[nn.Module]
    names: list[str]
    _: KW_ONLY
    initial_scale: float  # first centroids, as a share of each layer's largest and smallest weight
    gamma: float  # strength, lambda = gamma delta lambda_max; may change at any time
    kmeans: bool = False  # improve the first centroids by Lloyd's algorithm
    prune: bool = False  # ECP: weights that are not zero keep their latent value
    ttq_threshold: float | None = None  # trained ternary quantization, from centroids of 1
    levels: int = 3  # values per layer: 3, or 5, 7, 15

    @torch.no_grad()
    def __post_init__(self, network: nn.Module) -> None:
        self.frozen = False
        # tied layers share one parameter: it is quantized once, under the first of its names
        tied = {network.get_parameter(name): name for name in reversed(self.names)}
        self.names = [name for name in self.names if name in tied.values()]
        self.weights = [network.get_parameter(name) for name in self.names]
        if self.levels == 3:
            self.layers = TernaryLayers(self.weights, prune=self.prune)
        else:
            self.layers = MultiLevelLayers(self.weights, levels=self.levels)
        self.latent, self.centroids = self.layers.latent, self.layers.centroids
        self.centroids.mul_(self.initial_scale)
        if self.ttq_threshold is not None:
            self.centroids.fill_(1)
        if self.kmeans:
            self.layers.kmeans()
        self.finish_step()

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Gradients of latent weights and centroids."""
        self.layers.set_gradients(frozen=self.frozen)

    @torch.no_grad()
    def finish_step(self) -> None:
        """New codes, unless frozen, and the network's new weights."""
        if self.ttq_threshold is not None and not self.frozen:
            self.layers.reassign_ttq(self.ttq_threshold)
        elif not self.frozen:
            self.layers.reassign(self.gamma)
        self.layers.set_values()

    def set_gamma(self, gamma: float) -> None:
        """Assign the present latent weights with another strength."""
        self.gamma = gamma
        self.finish_step()

    @torch.no_grad()
    def freeze(self) -> None:
        """From now on the codes are those of the network's present weights."""
        self.frozen = True
        self.layers.freeze()

    def codes(self) -> list[Tensor]:
        """Each layer's codes: int8 (n,), a copy."""
        return list(self.layers.segments.split(self.layers.codes()))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """By layer's name, see `LatentLayers.state`."""
        return dict(zip(self.names, self.layers.state(), strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue where another ternarizer of the same network stopped."""
        self.layers.load_state([state[name] for name in self.names])

    def figures(self) -> list[dict]:
        """Each layer's figures, see `LatentLayers.figures`, with its name."""
        figures = self.layers.figures()
        return [{"layer": n, **f} for n, f in zip(self.names, figures, strict=True)]

    def zeros(self) -> float:
        """Percent of the quantized weights that are zero."""
        return 100 * float((self.layers.values == 0).double().mean())
