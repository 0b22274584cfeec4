"""EC2T against independent arithmetic: brute force, loops and finite differences."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_quantization.ec2t.assignment import (
    assign,
    find_thresholds,
    largest_lambda,
    probabilities,
    shares,
    statistics,
)
from model_quantization.ec2t.flat_layers import Segments
from model_quantization.ec2t.multilevel_layers import MultiLevelLayers
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.gamma_search import Goal, solve_gamma
from model_quantization.layer_selection import ternarized_names

DEGENERATE = {
    "equal": [0.3] * 7,
    "positive": [0.1, 0.2, 0.9],
    "negative": [-0.1, -0.2, -0.9],
    "one weight": [0.5],
    "zeros": [0.0] * 5,
}


def loop_assignment(weights, w_p, w_n, gamma, relative_size):
    """The rules of the paper for one layer, weight by weight, in Python floats."""
    centroids = {"n": -w_n, "0": 0.0, "p": w_p}
    counts = dict.fromkeys(centroids, 0)
    for w in weights:
        counts[min(centroids, key=lambda c: (w - centroids[c]) ** 2)] += 1
    counts = {c: max(n, 1) for c, n in counts.items()}
    share = {c: n / sum(counts.values()) for c, n in counts.items()}
    if share["0"] < 0.5:
        rest = share["p"] + share["n"]
        share = {"n": share["n"] / rest / 2, "0": 0.5, "p": share["p"] / rest / 2}
    limits = []
    for side, extreme in (("p", max(weights)), ("n", min(weights))):
        price = math.log2(share["0"]) - math.log2(share[side])
        if price > 0:
            gain = extreme**2 - (extreme - centroids[side]) ** 2
            limits.append(gain / price)
    lam = gamma * relative_size * max(min(limits, default=0.0), 0.0)
    codes = []
    for w in weights:
        cost = {c: (w - centroids[c]) ** 2 - lam * math.log2(share[c]) for c in centroids}
        codes.append({"n": -1, "0": 0, "p": 1}[min(cost, key=cost.get)])
    return codes, lam


def random_layers(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 400, (count,), generator=generator).tolist()
    return [torch.randn(n, generator=generator, dtype=torch.float64) * 0.1 for n in sizes]


def assigned(layers, centroids, gamma):
    """Codes per layer and lambda by the implementation, at given centroids (2, L)."""
    segments = Segments([len(w) for w in layers], layers[0])
    latent = segments.join(layers)
    stats = statistics(latent, segments)
    nearest = shares(assign(latent, centroids / 2, segments), segments)
    information = -probabilities(nearest, segments.counts).log2()
    lam = gamma * segments.delta * largest_lambda(centroids, information, stats)
    positive, negative = assign(latent, find_thresholds(centroids, lam, information), segments)
    return segments.split(positive.int() - negative.int()), lam


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.15, 0.5, 0.99])
def test_thresholds_equal_the_cheapest_of_three_costs(gamma):
    layers = random_layers(40, seed=1)
    layers += [torch.tensor(w, dtype=torch.float64) for w in DEGENERATE.values()]
    generator = torch.Generator().manual_seed(2)
    centroids = 0.02 + 0.3 * torch.rand(2, len(layers), generator=generator, dtype=torch.float64)
    codes, lam = assigned(layers, centroids, gamma)
    largest = max(map(len, layers))
    for i, weights in enumerate(layers):
        size = (len(weights) / largest + 0.05) / 1.05
        w_p, w_n = centroids[:, i].tolist()
        expected, expected_lam = loop_assignment(weights.tolist(), w_p, w_n, gamma, size)
        assert codes[i].tolist() == expected
        assert lam[i].item() == pytest.approx(expected_lam, rel=1e-12, abs=1e-15)


def test_more_gamma_is_never_less_sparse():
    layers = random_layers(20, seed=3)
    centroids = torch.full((2, len(layers)), 0.12, dtype=torch.float64)
    zeros = [
        [(c == 0).sum().item() for c in assigned(layers, centroids, gamma)[0]]
        for gamma in torch.linspace(0, 1, 11).tolist()
    ]
    assert all(a <= b for low, high in pairwise(zeros) for a, b in zip(low, high, strict=True))
    assert sum(zeros[0]) < sum(zeros[-1])


def test_gamma_of_one_empties_one_side_only():
    for layer in random_layers(20, seed=4):
        if (layer > 0.15).sum() == 0 or (layer < -0.15).sum() == 0:
            continue  # too few weights to have both sides to begin with
        centroids = torch.full((2, 1), 0.12, dtype=torch.float64)
        (below,), _ = assigned([layer], centroids, 0.999)
        (above,), _ = assigned([layer], centroids, 1.001)
        assert (below > 0).any() and (below < 0).any()
        assert (above > 0).any() != (above < 0).any()


def test_probabilities_sum_to_one_with_their_floor():
    counts = torch.tensor([[3.0, 0.0, 90.0, 0.0], [5.0, 0.0, 5.0, 10.0], [2.0, 7.0, 5.0, 0.0]])
    sizes = counts.sum(0)
    chance = probabilities(counts / sizes, sizes)
    assert torch.allclose(chance.sum(0), torch.ones(4))
    assert (chance[2] >= 0.5).all() and (chance > 0).all()
    assert torch.allclose(chance[0] / chance[1], counts.clamp_min(1)[0] / counts.clamp_min(1)[1])


def codes_of(ternarizer):
    return [layer["codes"].tolist() for layer in ternarizer.state_dict().values()]


def centroids_of(ternarizer):
    return torch.stack([layer["centroids"] for layer in ternarizer.state_dict().values()])


class Tiny(nn.Module):
    """Two ternarized layers and an ordinary one, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (16,), generator=generator)


def tiny(gamma=0.1, **settings):
    network = Tiny()
    ternarizer = Ternarizer(
        network, ["a.weight", "b.weight"], initial_scale=0.5, gamma=gamma, **settings
    )
    return network, ternarizer


def backward(network, x, y):
    network.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    return loss


@pytest.mark.parametrize("settings", [{}, {"ttq_threshold": 0.3}, {"levels": 5}])
def test_centroid_gradients_against_finite_differences(settings):
    network, ternarizer = tiny(**settings)
    x, y = batch()
    backward(network, x, y)
    ternarizer.prepare_step()
    centroids = ternarizer.centroids
    gradient = centroids.grad.clone()
    ternarizer.frozen = True  # codes stay, only values follow the centroids
    for side in range(len(centroids)):
        for layer in range(2):
            losses = []
            for shift in (1e-6, -1e-6):
                centroids.data[side, layer] += shift
                ternarizer.finish_step()
                losses.append(F.cross_entropy(network(x), y).item())
                centroids.data[side, layer] -= shift
            expected = (losses[0] - losses[1]) / 2e-6
            assert gradient[side, layer].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_latent_gradients_are_the_weights_times_their_centroid():
    network, ternarizer = tiny()
    x, y = batch()
    backward(network, x, y)
    ternarizer.prepare_step()
    for weight in ternarizer.weights:  # first the network's own gradient
        for i in range(0, weight.numel(), 5):
            losses = []
            for shift in (1e-6, -2e-6, 1e-6):
                weight.data.view(-1)[i] += shift
                losses.append(F.cross_entropy(network(x), y).item())
            expected = (losses[0] - losses[1]) / 2e-6
            assert weight.grad.view(-1)[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    for layer, weight, gradient in zip(
        ternarizer.state_dict().values(),
        ternarizer.weights,
        ternarizer.layers.segments.split(ternarizer.latent.grad),
        strict=True,
    ):
        w_p, w_n = layer["centroids"].tolist()
        factor = {1: w_p, 0: 1.0, -1: -w_n}
        for code, g, out in zip(layer["codes"], weight.grad.flatten(), gradient, strict=True):
            assert out.item() == pytest.approx(g.item() * factor[int(code)], rel=1e-12)


def loop_adam(value, gradient, state, lr, decay=0.0):
    """One scalar Adam step; `state` is [step, mean, square]."""
    gradient += decay * value
    state[0] += 1
    state[1] = 0.9 * state[1] + 0.1 * gradient
    state[2] = 0.999 * state[2] + 0.001 * gradient**2
    mean, square = state[1] / (1 - 0.9 ** state[0]), state[2] / (1 - 0.999 ** state[0])
    return value - lr * mean / (math.sqrt(square) + 1e-8)


def test_twenty_steps_against_loops():
    gamma, lr, lr2 = 0.3, 1e-2, 1e-3
    network, ternarizer = tiny(gamma)
    optimizer = torch.optim.Adam(
        [{"params": [ternarizer.latent], "lr": lr}, {"params": [ternarizer.centroids], "lr": lr2}]
    )
    reference = Tiny()
    layers = {name: reference.get_parameter(name) for name in ternarizer.names}
    latents = {name: w.detach().flatten().tolist() for name, w in layers.items()}
    centroids = {name: [0.5 * max(w), -0.5 * min(w)] for name, w in latents.items()}
    adam = {name: [[0, 0.0, 0.0] for _ in w] for name, w in latents.items()}
    adam_c = {name: [[0, 0.0, 0.0] for _ in range(2)] for name in latents}
    codes = {}

    def reassign():
        largest = max(map(len, latents.values()))
        for name, w in latents.items():
            mean = sum(w) / len(w)
            std = math.sqrt(sum((v - mean) ** 2 for v in w) / len(w))
            centroids[name] = [max(c, 0.675 * std) for c in centroids[name]]
            size = (len(w) / largest + 0.05) / 1.05
            codes[name], _ = loop_assignment(w, *centroids[name], gamma, size)
            w_p, w_n = centroids[name]
            values = [w_p if c > 0 else -w_n if c < 0 else 0.0 for c in codes[name]]
            layers[name].data = torch.tensor(values).double().view_as(layers[name])

    torch.set_default_dtype(torch.float64)
    try:
        reassign()
        for i in range(20):
            x, y = batch(i)
            backward(network, x, y)
            ternarizer.prepare_step()
            optimizer.step()
            ternarizer.finish_step()
            backward(reference, x, y)
            for name, weight in layers.items():
                g = weight.grad.flatten().tolist()
                w_p, w_n = centroids[name]
                scale = [w_p if c > 0 else w_n if c < 0 else 1.0 for c in codes[name]]
                sides = [
                    sum(v for v, c in zip(g, codes[name], strict=True) if c > 0),
                    -sum(v for v, c in zip(g, codes[name], strict=True) if c < 0),
                ]
                latents[name] = [
                    loop_adam(w, v * s, state, lr)
                    for w, v, s, state in zip(latents[name], g, scale, adam[name], strict=True)
                ]
                centroids[name] = [
                    loop_adam(c, v, state, lr2)
                    for c, v, state in zip(centroids[name], sides, adam_c[name], strict=True)
                ]
            reassign()
            assert codes_of(ternarizer) == list(codes.values())
            for name, weight in layers.items():
                assert torch.allclose(network.get_parameter(name), weight, rtol=0, atol=1e-12)
        expected = torch.tensor([w for layer in latents.values() for w in layer])
        ours = torch.cat([layer["latent"] for layer in ternarizer.state_dict().values()])
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def train(network, ternarizer, steps):
    optimizer = torch.optim.Adam(
        [ternarizer.latent, ternarizer.centroids, *network.c.parameters()], lr=1e-2
    )
    for i in range(steps):
        backward(network, *batch(i))
        ternarizer.prepare_step()
        optimizer.step()
        ternarizer.finish_step()


def test_a_network_stays_ordinary_with_three_values_per_layer():
    network, ternarizer = tiny()
    train(network, ternarizer, 10)
    assert list(network.state_dict()) == list(Tiny().state_dict())
    for name in ternarizer.names:
        assert len(network.get_parameter(name).unique()) <= 3


def test_frozen_codes_never_change_while_centroids_do():
    network, ternarizer = tiny()
    train(network, ternarizer, 3)
    ternarizer.freeze()
    codes, centroids = codes_of(ternarizer), centroids_of(ternarizer)
    latent = ternarizer.latent.detach().clone()
    train(network, ternarizer, 10)
    assert codes_of(ternarizer) == codes
    assert torch.equal(ternarizer.latent, latent)
    assert not torch.equal(centroids_of(ternarizer), centroids)
    assert [w.flatten().sign().int().tolist() for w in ternarizer.weights] == codes


def test_pruning_keeps_the_latent_values_of_survivors():
    network, ternarizer = tiny(gamma=0.4, prune=True)
    backward(network, *batch())
    ternarizer.prepare_step()
    flat = torch.cat([w.grad.flatten() for w in ternarizer.weights])
    assert torch.equal(ternarizer.latent.grad.flatten(), flat)  # factor 1, zeroed weights too
    train(network, ternarizer, 10)
    for layer, weight in zip(ternarizer.state_dict().values(), ternarizer.weights, strict=True):
        kept = layer["codes"] != 0
        assert 0 < kept.sum() < len(kept)
        assert torch.equal(weight.flatten()[kept], layer["latent"][kept])
        assert (weight.flatten()[~kept] == 0).all()


def test_ttq_assigns_by_a_share_of_the_largest_weight():
    network, ternarizer = tiny(ttq_threshold=0.3)
    for layer, weight in zip(ternarizer.state_dict().values(), ternarizer.weights, strict=True):
        w = layer["latent"]
        expected = [int(v > 0) - int(v < 0) if abs(v) > 0.3 * w.abs().max() else 0 for v in w]
        assert layer["codes"].tolist() == expected
        assert set(weight.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    train(network, ternarizer, 3)
    assert (centroids_of(ternarizer).abs() != 1).all()


def test_bisection_finds_gamma():
    seen = []
    goal = Goal("90", 90.0, 1.0, lambda: 50 + 60 * seen[-1])
    assert solve_gamma(goal, seen.append) == pytest.approx(2 / 3, abs=1e-3)
    assert goal.reached()
    goal = Goal("20", 20.0, 1.0, lambda: 50 + 60 * seen[-1])
    assert solve_gamma(goal, seen.append) == 0 and not goal.reached()


def test_kmeans_finds_the_means_of_its_clusters():
    _, ternarizer = tiny(gamma=0.0, kmeans=True)
    for layer in ternarizer.state_dict().values():
        w, (w_p, w_n) = layer["latent"], layer["centroids"].tolist()
        assert w[w > w_p / 2].mean().item() == pytest.approx(w_p)
        assert w[w <= w_n / 2].mean().item() == pytest.approx(w_n)


def test_state_restores_the_ternarizer():
    network, ternarizer = tiny()
    train(network, ternarizer, 4)
    other_network, other = tiny()
    other_network.load_state_dict(network.state_dict())
    other.load_state_dict(ternarizer.state_dict())
    for n, t in ((network, ternarizer), (other_network, other)):
        train(n, t, 3)
    assert codes_of(ternarizer) == codes_of(other)
    assert torch.equal(ternarizer.latent, other.latent)
    assert torch.equal(ternarizer.centroids, other.centroids)
    assert all(map(torch.equal, ternarizer.weights, other.weights))


def cheapest_level(w, table, chances, lam):
    costs = [(w - v) ** 2 - lam * math.log2(p) for v, p in zip(table, chances, strict=True)]
    return costs.index(min(costs)) - len(table) // 2


@pytest.mark.parametrize("levels", [5, 7, 15])
def test_more_levels_take_the_cheapest_of_all_costs(levels):
    _, ternarizer = tiny(gamma=0.4, levels=levels)
    half = levels // 2
    for layer, figures in zip(ternarizer.state_dict().values(), ternarizer.figures(), strict=True):
        table, w = layer["centroids"].tolist(), layer["latent"].tolist()
        assert table == sorted(table) and table[half] == 0 and len(set(table)) == levels
        nearest = [min(range(levels), key=lambda i: (v - table[i]) ** 2) for v in w]
        counts = [max(nearest.count(i), 1) for i in range(levels)]
        chances = [n / sum(counts) for n in counts]
        if chances[half] < 0.5:
            rest = 1 - chances[half]
            chances = [p / rest / 2 for p in chances]
            chances[half] = 0.5
        lam = figures["lambda"]
        assert layer["codes"].tolist() == [cheapest_level(v, table, chances, lam) for v in w]


def test_three_levels_of_many_are_the_ternary_case():
    networks = [tiny(gamma=0.3), tiny(gamma=0.3)]
    general = networks[1][1]
    for name, weight in zip(general.names, general.weights, strict=True):
        weight.data = Tiny().get_parameter(name).data.clone()
    general.layers = MultiLevelLayers(general.weights, levels=3)
    general.latent, general.centroids = general.layers.latent, general.layers.centroids
    general.centroids.data.mul_(0.5)
    general.finish_step()
    for network, ternarizer in networks:
        train(network, ternarizer, 20)
    ternary, general = (ternarizer for _, ternarizer in networks)
    assert codes_of(ternary) == codes_of(general)
    for a, b in zip(ternary.weights, general.weights, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [5, 15])
def test_levels_train_freeze_and_restore(levels):
    network, ternarizer = tiny(levels=levels, kmeans=True)
    train(network, ternarizer, 5)
    for weight in ternarizer.weights:
        assert 3 < len(weight.unique()) <= levels
    other_network, other = tiny(levels=levels)
    other_network.load_state_dict(network.state_dict())
    other.load_state_dict(ternarizer.state_dict())
    train(network, ternarizer, 2)
    train(other_network, other, 2)
    assert codes_of(ternarizer) == codes_of(other)
    before = [w.detach().clone() for w in ternarizer.weights]
    ternarizer.freeze()
    ternarizer.finish_step()
    assert all(map(torch.equal, before, ternarizer.weights))
    codes = codes_of(ternarizer)
    train(network, ternarizer, 5)
    assert codes_of(ternarizer) == codes
    assert not all(map(torch.equal, before, ternarizer.weights))


METHODS = [
    {},
    {"prune": True},
    {"kmeans": True},
    {"levels": 5},
    {"levels": 15, "kmeans": True},
    {"ttq_threshold": 0.0},
    {"ttq_threshold": 0.05},
    {"ttq_threshold": 1.0},
]
LAYERS = {
    "zeros": torch.zeros(8, 4),
    "one weight of many": F.one_hot(torch.tensor([3]), 32).float().view(8, 4) * -0.2,
    "constant": torch.full((8, 4), 0.3),
    "subnormal": torch.tensor([0.0, 1e-42, -1e-42, 5e-39]).repeat(8, 1),
    "tiny": torch.tensor([0.0, 1e-30, -1e-30, 2e-30]).repeat(8, 1),
    "a single weight": torch.zeros(1, 1),
    "depthwise with a zero filter": torch.linspace(-1, 1, 36).view(4, 1, 3, 3)
    * torch.tensor([1, 0, 1, 1]).view(4, 1, 1, 1),
}


@pytest.mark.parametrize("scale", [0.0, 1e-42, 0.3])
@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_of_zero_stays_zero(layer, settings, scale):
    """Whatever the method and the first centroids; and no value is too small to be a weight."""
    network = nn.Module()
    network.a, network.b = (nn.Parameter(LAYERS[layer].clone()) for _ in range(2))
    with torch.no_grad():
        network.b[0] = 0.1  # another layer beside it
    before = network.a.detach().clone()
    ternarizer = Ternarizer(network, ["a", "b"], initial_scale=scale, gamma=0.15, **settings)
    for _ in range(2):
        assert not network.a[before == 0].any()
        assert not ((network.a != 0) & (network.a.abs() < 1e-37)).any()
        for figures in ternarizer.figures():
            assert all(math.isfinite(v) for v in figures.values() if isinstance(v, float))
        ternarizer.freeze()
        ternarizer.finish_step()


def test_centroids_that_become_subnormal_are_zeros():
    for settings in ({"ttq_threshold": 0.1}, {"levels": 5}, {}):
        _, ternarizer = tiny(**settings)
        ternarizer.freeze()
        ternarizer.centroids.data.fill_(1e-42)
        ternarizer.finish_step()
        assert ternarizer.zeros() == 100 and not any(w.any() for w in ternarizer.weights)


def test_ttq_keeps_to_its_rule_at_its_limit():
    """|W| > t max|W|: the largest weight itself is not above all of it, on either side."""
    network = nn.Module()
    network.a = nn.Parameter(torch.tensor([-0.5, 0.5, 0.25, -0.25, 0.0]))
    for threshold, codes in (
        (1.0, [0, 0, 0, 0, 0]),
        (0.5, [-1, 1, 0, 0, 0]),
        (0, [-1, 1, 1, -1, 0]),
    ):
        network.a.data = torch.tensor([-0.5, 0.5, 0.25, -0.25, 0.0])
        ternarizer = Ternarizer(network, ["a"], initial_scale=1, gamma=0, ttq_threshold=threshold)
        assert codes_of(ternarizer) == [codes]


class Tied(nn.Module):
    """One parameter under two names, in two modules or as a view; or the same, written once."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(6)
        self.how, self.first = how, nn.Conv2d(2, 4, 3, padding=1)
        self.a, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        if how == "module":
            self.b = self.a
        elif how == "parameter":
            self.b = nn.Conv2d(4, 4, 3, padding=1)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x):
        x = torch.tanh(self.a(torch.tanh(self.first(x))))
        if self.how == "view":
            weight = self.a.weight.reshape(4, 36).view(4, 4, 3, 3)
            x = F.conv2d(x, weight, self.a.bias, padding=1)
        else:
            x = (self.b if self.how in ("module", "parameter") else self.a)(x)
        return self.last(torch.tanh(x)).mean((2, 3))


@pytest.mark.parametrize("settings", [{}, {"levels": 5}, {"prune": True}, {"ttq_threshold": 0.2}])
@pytest.mark.parametrize("how", ["module", "parameter", "view"])
def test_tied_layers_are_one_layer(how, settings):
    found = []
    for kind in (how, "once"):
        network = Tied(kind)
        names = ternarized_names(network, family="other")
        assert names == ["a.weight", "last.weight"]
        if kind == "parameter":  # also for a caller that names both
            names.insert(1, "b.weight")
        ternarizer = Ternarizer(network, names, initial_scale=0.4, gamma=0.2, **settings)
        optimizer = torch.optim.Adam([ternarizer.latent, ternarizer.centroids], lr=1e-2)
        for i in range(5):
            generator = torch.Generator().manual_seed(i)
            network.zero_grad()
            images = torch.randn(4, 2, 6, 6, generator=generator)
            F.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
            ternarizer.prepare_step()
            optimizer.step()
            ternarizer.finish_step()
        state, weight = ternarizer.state_dict(), network.a.weight.detach()
        found.append([weight, *(t for layer in state.values() for t in layer.values())])
        if kind == "parameter":
            assert network.b.weight is network.a.weight
        assert list(ternarizer.state_dict()) == ["a.weight", "last.weight"]
        assert ternarizer.latent.numel() == 4 * 4 * 9 + 3 * 4
    assert all(map(torch.equal, *found))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, {"prune": True}])
def test_a_graph_assigns_as_the_functions_do(settings):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1)).cuda()
    shared = {"initial_scale": 0.3, "gamma": 0.2, **settings}
    graph, plain = (Ternarizer(copy.deepcopy(network), **shared) for _ in range(2))
    for step in range(5):
        moves = torch.randn_like(graph.latent) / 20
        for ternarizer in (graph, plain):
            ternarizer.latent.data += moves
            ternarizer.gamma = 0.2 + step / 20
        graph.finish_step()
        with torch.no_grad():
            plain.layers.reassign(plain.gamma)
            plain.layers.set_values()
        for name in ("values", "centroids", *graph.made):
            assert getattr(graph.layers, name).equal(getattr(plain.layers, name)), name
        if step == 2:
            graph.load_state_dict(plain.state_dict())
