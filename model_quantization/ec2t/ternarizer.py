"""EC2T on a network: what a training loop calls, and what a run wants to know."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from data.batches import Replayed
from model_quantization.ec2t.multilevel_layers import MultiLevelLayers
from model_quantization.ec2t.ternary_layers import TernaryLayers


def all_but_the_first(network: nn.Module) -> list[str]:
    """The weights of every convolution but the first, which sees the image; tied ones once."""
    names: dict[object, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):  # one whose weight is computed has no parameter
            names.setdefault(module._parameters.get("weight", module), f"{name}.weight")
    return list(names.values())[1:]


@dataclass(eq=False, repr=False)
class Ternarizer:
    """Entropy-constrained trained ternarization (Marban et al., CVPR-W 2020) in any training loop:

        ternarizer = Ternarizer(network, initial_scale=0.3, gamma=0.15)
        optimizer = torch.optim.Adam(ternarizer.parameter_groups(lr=1e-4, centroid_lr=1e-5))
        ...
        loss.backward()
        ternarizer.prepare_step()
        optimizer.step()
        ternarizer.finish_step()

    The network's weights stay ordinary parameters under their ordinary names; those in `names` have
    three values each at any time. The optimizer gets `latent` and `centroids` in their place. Move
    the network to its device first, and wrap it (DDP, torch.compile) afterwards. ValueError for
    `names` that are no trainable parameters of floating point, and for `levels` that are even."""

    network: nn.Module
    names: Iterable[str] | None = None  # parameters; default: all convolutions but the first
    _: KW_ONLY
    initial_scale: float  # first centroids, as a share of each layer's largest and smallest weight
    gamma: float  # strength, lambda = gamma delta lambda_max; may change at any time
    kmeans: bool = False  # improve the first centroids by Lloyd's algorithm
    prune: bool = False  # ECP: weights that are not zero keep their latent value
    ttq_threshold: float | None = None  # trained ternary quantization, from centroids of 1
    levels: int = 3  # values per layer: 3, or 5, 7, 15

    @torch.no_grad()
    def __post_init__(self) -> None:
        self.frozen = False  # whether codes stay as they are
        names = all_but_the_first(self.network) if self.names is None else list(self.names)
        self._require(names)
        # tied layers share one parameter: it is quantized once, under the first of its names
        tied = {self.network.get_parameter(name): name for name in reversed(names)}
        self.names = [name for name in names if name in tied.values()]
        self.weights = [self.network.get_parameter(name) for name in self.names]
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
        self.replayed = Replayed(self._reassigned)
        self.finish_step()

    def _require(self, names: list[str]) -> None:
        """ValueError for what cannot be quantized."""
        if not names:
            raise ValueError("nothing to quantize: `names` must name at least one parameter")
        if self.levels < 3 or self.levels % 2 == 0:
            raise ValueError(f"levels={self.levels}: it must be 3, or 5, 7, 15")
        known = dict(self.network.named_parameters(remove_duplicate=False))
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is no parameter: take names of named_parameters()")
            if not known[name].requires_grad:
                raise ValueError(f"{name} cannot be trained: its requires_grad is False")
            if known[name].dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} is {known[name].dtype}, too coarse to train: keep weights in float32 "
                    "and compute under torch.autocast"
                )

    def parameter_groups(
        self, *, lr: float, centroid_lr: float, weight_decay: float = 0.0
    ) -> list[dict]:
        """What Adam is to train: latent weights; centroids, whose gradients are sums over many
        weights and which need a smaller rate; all else in the network, alone with weight decay."""
        quantized = set(self.weights)
        others = [p for p in self.network.parameters() if p not in quantized and p.requires_grad]
        return [
            {"params": [self.latent], "lr": lr, "weight_decay": 0.0},
            {"params": [self.centroids], "lr": centroid_lr, "weight_decay": 0.0},
            {"params": others, "lr": lr, "weight_decay": weight_decay},
        ]

    @torch.no_grad()
    def prepare_step(self) -> None:
        """After the backward pass: gradients of latent weights and centroids."""
        self.layers.set_gradients(frozen=self.frozen)

    @torch.no_grad()
    def _assign(self) -> None:
        if self.ttq_threshold is not None and not self.frozen:
            self.layers.reassign_ttq(self.ttq_threshold)
        elif not self.frozen and self.latent.is_cuda and self.levels == 3:
            gamma = torch.full((), self.gamma, device=self.latent.device, dtype=self.latent.dtype)
            for name, value in zip(self.made, self.replayed(gamma), strict=True):
                setattr(self.layers, name, value)
            return
        elif not self.frozen:
            self.layers.reassign(self.gamma)
        self.layers.set_values()

    @property
    def made(self) -> tuple[str, ...]:
        """The layers' attributes that an assignment makes anew; it writes into all others."""
        return (*self.layers.coded, "lam", "guarded")

    def _reassigned(self, gamma: Tensor) -> tuple[Tensor, ...]:
        self.layers.reassign(gamma)
        self.layers.set_values()
        return tuple(getattr(self.layers, name) for name in self.made)

    def finish_step(self) -> None:
        """After the optimizer's step: new codes, unless frozen, and the network's new weights."""
        self._assign()
        for weight in self.weights:  # the optimizer does not have them: its zero_grad leaves them
            weight.grad = None

    def set_gamma(self, gamma: float) -> None:
        """Assign the present latent weights with another strength."""
        self.gamma = gamma
        self._assign()

    @torch.no_grad()
    def freeze(self, frozen: bool = True) -> None:
        """Whether codes stay as they are from now on, while centroids and all that is not quantized
        go on training. They become those of the network's present weights, which may have been
        loaded from an earlier epoch. Like `nn.Module.train`, again the same changes nothing."""
        if frozen and not self.frozen:
            self.layers.freeze()
        self.frozen = frozen

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
