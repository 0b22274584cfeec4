"""EC2T on a network: what a training loop calls, and what a run wants to know."""

import torch
from torch import Tensor, nn

from model_quantization.ec2t.multilevel_layers import MultiLevelLayers
from model_quantization.ec2t.ternary_layers import TernaryLayers


class Ternarizer:
    """The quantized layers of one network: `prepare_step` after the backward pass, `finish_step`
    after the optimizer's.

    The network's weights stay ordinary parameters under their ordinary names; the optimizer gets
    `latent` and `centroids` in their place. `gamma` may change at any time. With `ttq_threshold`
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
        self.weights = [network.get_parameter(name) for name in names]
        if levels == 3:
            self.layers = TernaryLayers(self.weights, prune=prune)
        else:
            self.layers = MultiLevelLayers(self.weights, levels=levels)
        self.latent, self.centroids = self.layers.latent, self.layers.centroids
        if ttq_threshold is None:
            self.centroids.mul_(initial_scale)
        else:
            self.centroids.fill_(1)
        if kmeans:
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
        """By layer what the network's weights do not tell: latents, codes, centroids, lambda, and
        which centroids are at their guards."""
        rows = zip(
            self.names, self.layers.state(), self.layers.lam, self.layers.guarded.T, strict=True
        )
        return {name: {**state, "lambda": lam, "guarded": g} for name, state, lam, g in rows}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue where another ternarizer of the same network stopped."""
        layers = [state[name] for name in self.names]
        self.layers.load_state(layers)
        self.layers.lam.copy_(torch.stack([layer["lambda"] for layer in layers]))
        self.layers.guarded.copy_(torch.stack([layer["guarded"] for layer in layers], 1))

    def figures(self) -> list[dict]:
        """Each layer's figures, see `TernaryLayers.figures`, with its name."""
        figures = self.layers.figures()
        return [{"layer": n, **f} for n, f in zip(self.names, figures, strict=True)]

    def zeros(self) -> float:
        """Percent of the quantized weights that are zero."""
        return 100 * float((self.layers.codes() == 0).double().mean())
