"""Random small networks with many dead channels, of all that the analysis of channels follows."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Step = tuple[Callable, int]  # function of the layers and the image; channels of its result


class RandomNetwork(nn.Module):
    """Two to seven steps from STEPS, a pooling and a classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers, self.steps, self.names = nn.ModuleList(), [], []
        self.chance, channels = random.Random(seed), 3
        for _ in range(self.chance.randint(2, 7)):
            name = self.chance.choice(list(STEPS))
            step = STEPS[name](self, channels)
            if step is not None:
                self.steps.append(step[0])
                self.names.append(name)
                channels = step[1]
        self.head = nn.Linear(channels, 5, bias=self.chance.random() < 0.8)

    def add(self, layer: nn.Module) -> Callable:
        """Keep a layer; a function that calls it (or what it has been replaced with)."""
        self.layers.append(layer)
        place = len(self.layers) - 1
        return lambda s, x: s.layers[place](x)

    def conv(self, c_in: int, c_out: int, kernel: int, **options) -> Callable:
        padding = self.chance.choice([0, kernel // 2, kernel // 2])
        bias = self.chance.random() < 0.5
        return self.add(nn.Conv2d(c_in, c_out, kernel, padding=padding, bias=bias, **options))

    def same(self, c_in: int, c_out: int, kernel: int = 3, **options) -> Callable:
        """A convolution whose result is as large as its input."""
        bias = self.chance.random() < 0.5
        return self.add(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(self, x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def conv(net: RandomNetwork, c: int) -> Step:
    out = net.chance.choice([2, 4, 6, 8])
    return net.conv(c, out, net.chance.choice([1, 3])), out


def pointwise_pair(net: RandomNetwork, c: int) -> Step:
    out = net.chance.choice([3, 4, 5])
    first, last = net.same(c, 4, 1), net.same(4, out, 1)
    return lambda s, x: last(s, first(s, x)), out


def residual(net: RandomNetwork, c: int) -> Step:
    layer, norm = net.same(c, c), net.add(nn.BatchNorm2d(c))
    with_norm = net.chance.random() < 0.6
    return lambda s, x: F.relu(x + (norm(s, layer(s, x)) if with_norm else layer(s, x))), c


def concatenation(net: RandomNetwork, c: int) -> Step:
    out = net.chance.choice([2, 3, 4])
    layer = net.same(c, out, net.chance.choice([1, 3]))
    return lambda s, x: torch.cat([x, layer(s, x)], 1), c + out


def depthwise(net: RandomNetwork, c: int) -> Step:
    return net.conv(c, c, 3, groups=c), c


def grouped(net: RandomNetwork, c: int) -> Step | None:
    if c % 2:
        return None
    out = c * net.chance.choice([1, 2])
    return net.conv(c, out, net.chance.choice([1, 3]), groups=2), out


def shuffle(net: RandomNetwork, c: int) -> Step | None:
    if c % 2:
        return None

    def run(s, x):
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    return run, c


def batchnorm(net: RandomNetwork, c: int) -> Step:
    return net.add(nn.BatchNorm2d(c)), c


def activation(net: RandomNetwork, c: int) -> Step:
    functions = [F.relu, F.silu, F.hardswish, F.mish, F.relu6, torch.sigmoid, torch.tanh]
    functions += [lambda x: x.clamp(min=-0.5), lambda x: 1 - x, lambda x: torch.add(x, x, alpha=2)]
    function = net.chance.choice(functions)
    if net.chance.random() < 0.4:  # with channels last, as linear layers want them
        return lambda s, x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c
    return lambda s, x: function(x), c


def pooling(net: RandomNetwork, c: int) -> Step:
    functions = [lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 2, 1, padding=1)]
    functions += [lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: F.pad(x, (1, 0, 1, 0))]
    function = net.chance.choice(functions)
    return lambda s, x: function(x), c


def half(net: RandomNetwork, c: int) -> Step | None:
    """Half of the channels go through a layer, by `chunk` or by parts of a given size."""
    if c % 2:
        return None
    layer, by_size = net.same(c // 2, c // 2, 1), net.chance.random() < 0.4

    def run(s, x):
        a, b = x.split(c // 2, dim=1) if by_size else x.chunk(chunks=2, dim=1)
        return torch.cat([a, layer(s, b)], dim=1)

    return run, c


def squeeze(net: RandomNetwork, c: int) -> Step:
    """Squeeze-and-excitation."""
    first, last = net.same(c, 2, 1), net.same(2, c, 1)
    pool = lambda x: x.mean((2, 3), keepdim=True)  # noqa: E731
    return lambda s, x: x * torch.sigmoid(last(s, F.relu(first(s, pool(x))))), c


def branches(net: RandomNetwork, c: int) -> Step:
    """Two readers of the same channels, one of them with a border."""
    one, other = net.same(c, 4, 1), net.same(c, 4, 3)
    return lambda s, x: one(s, x) + other(s, x), 4


def ternary(net: RandomNetwork, c: int) -> Step:
    layer, norm = net.same(c, 6, net.chance.choice([1, 3])), net.add(nn.BatchNorm2d(6))
    codes = torch.randint(3, net.layers[-2].weight.shape)
    net.layers[-2].weight.data = torch.tensor([-0.5, 0.0, 0.25])[codes]
    return lambda s, x: norm(s, layer(s, x)), 6


def functional(net: RandomNetwork, c: int) -> Step:
    """A layer whose tensors are used without it, which cannot be narrowed."""
    layer = nn.Conv2d(c, 4, 1)
    net.layers.append(layer)
    place = len(net.layers) - 1

    def run(s, x):
        return F.conv2d(weight=s.layers[place].weight, input=x, bias=s.layers[place].bias)

    return run, 4


def product(net: RandomNetwork, c: int) -> Step:
    """A pointwise convolution written as a product of matrices."""
    linear = nn.Linear(c, 4, bias=False)
    net.layers.append(linear)
    place = len(net.layers) - 1
    forms = [
        lambda w, x: torch.einsum("oc,nchw->nohw", w, x),
        lambda w, x: (x.movedim(1, -1) @ w.t()).movedim(-1, 1),
        lambda w, x: F.linear(x.movedim(1, -1), w).movedim(-1, 1),
    ]
    form = net.chance.choice(forms)
    return lambda s, x: form(s.layers[place].weight, x), 4


def shared(net: RandomNetwork, c: int) -> Step:
    """A layer that runs twice."""
    layer = net.same(c, c, net.chance.choice([1, 3]))
    return lambda s, x: layer(s, F.relu(layer(s, x))), c


def image_norm(net: RandomNetwork, c: int) -> Step:
    kind = net.chance.choice(
        [lambda: nn.GroupNorm(1, c), lambda: nn.InstanceNorm2d(c, affine=True)]
    )
    return net.add(kind()), c


STEPS = {
    step.__name__: step
    for step in (
        *(conv, pointwise_pair, residual, concatenation, depthwise, grouped, shuffle, batchnorm),
        *(activation, pooling, half, squeeze, branches, ternary, functional, product, shared),
        image_norm,
    )
}


@torch.no_grad()
def kill(network: RandomNetwork, seed: int) -> RandomNetwork:
    """Random dead filters, unread inputs, biases of 0 and BatchNorms that make constants."""
    generator = torch.Generator().manual_seed(seed)

    def chance(count: int, share: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) < share

    def normal(count: int) -> torch.Tensor:
        return torch.randn(count, generator=generator) / 2

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module is not network.head:
                module.weight[chance(len(module.weight), 0.3)] = 0
            if module.weight.shape[1] > 2:
                module.weight[:, chance(module.weight.shape[1], 0.25)] = 0
            if module.bias is not None:
                module.bias[chance(len(module.bias), 0.4)] = 0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(normal(module.num_features))
            module.bias.copy_(normal(module.num_features))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight[chance(module.num_features, 0.15)] = 0
    return network.eval()


def random_network(seed: int) -> RandomNetwork:
    """Always the same network for a seed."""
    torch.manual_seed(seed)
    return kill(RandomNetwork(seed), seed)
