"""Weights that hooks and parametrizations compute: made parameters, they are the same network."""

import itertools
import random
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from model_compound_scaling.networks.permanent_weights import computed, make_permanent

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


# how a weight is computed; whether a state dict alone tells
KINDS = {
    "pruned": (lambda m: prune.random_unstructured(m, "weight", 0.5), True),
    "pruned twice": (
        lambda m: prune.l1_unstructured(prune.ln_structured(m, "weight", 0.3, 2, 0), "weight", 0.5),
        True,
    ),
    "pruned bias": (lambda m: prune.random_unstructured(m, "bias", 0.5), True),
    "weight norm": (weight_norm, True),
    "weight norm of all": (lambda m: weight_norm(m, dim=None), True),
    "weight norm of inputs": (lambda m: weight_norm(m, dim=1), True),
    "parametrized weight norm": (parametrizations.weight_norm, True),
    "spectral norm": (spectral_norm, True),
    "parametrized spectral norm": (parametrizations.spectral_norm, True),
    "orthogonal": (parametrizations.orthogonal, False),
    "own": (lambda m: parametrize.register_parametrization(m, "weight", Doubled()), False),
    "plain": (lambda m: None, True),
}


def random_network(rng: random.Random) -> tuple[nn.Sequential, list[str]]:
    kinds = rng.choices(list(KINDS), k=4)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.Linear(6 * 4 * 4, 7),
        nn.Linear(7, 5),
    )
    for layer, kind in zip(layers, kinds, strict=True):
        KINDS[kind][0](layer)
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(layers[0], norm, nn.ReLU(), layers[1], nn.Flatten(), *layers[2:]), kinds


def test_random_compositions(full):
    rng = random.Random(0)
    for seed in range(200 if full else 25):
        torch.manual_seed(seed)
        network, kinds = random_network(rng)
        for _ in range(rng.randrange(3)):  # power iterations of training
            network.train()(torch.randn(2, 3, 8, 8))
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            expected = network.eval()(images)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        network.train(rng.random() < 0.5)
        was_training = [module.training for module in network]
        names = make_permanent(network)
        assert [module.training for module in network] == was_training
        assert len(names) == sum(kind != "plain" for kind in kinds)
        assert not make_permanent(network)
        plain = random_network(random.Random(seed))[0]  # another's hooks play no role
        make_permanent(plain)
        for candidate in (network, plain):
            candidate.load_state_dict(network.state_dict())
            with torch.no_grad():
                torch.testing.assert_close(candidate.eval()(images), expected)
        assert all(isinstance(network.get_parameter(name), nn.Parameter) for name in names)
        found, told = computed(state)
        if all(KINDS[kind][1] for kind in kinds):
            assert sorted(told) == sorted(names) and found.keys() == network.state_dict().keys()
            for key, value in network.state_dict().items():
                torch.testing.assert_close(found[key], value)


def test_layers_that_share_a_weight_of_which_some_are_masked():
    """The others keep theirs; those that are the same in the end stay one."""
    masks = {"half": 0.5, "none": 0.0, "plain": None}
    for seed, kinds in enumerate(itertools.product(masks, repeat=3)):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in kinds]
        for layer in layers:
            layer.weight = layers[0].weight
        for layer, kind in zip(layers[::-1], kinds[::-1], strict=True):
            if masks[kind] is not None:  # the largest half of one weight are the same weights
                prune.l1_unstructured(layer, "weight", masks[kind])
        network, image = nn.Sequential(*layers), torch.randn(1, 4, 5, 5)
        expected = network(image)
        make_permanent(network)
        assert torch.equal(network(image), expected)
        assert len(list(network.parameters())) == len({kind == "half" for kind in kinds})


def test_a_shared_weight_that_is_parametrized_in_one_place():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    parametrize.register_parametrization(first, "weight", Doubled())
    weight = second.weight.detach().clone()
    make_permanent(nn.Sequential(first, second))
    assert torch.equal(first.weight, 2 * weight) and torch.equal(second.weight, weight)


def test_parts_that_do_not_go_together_are_left_as_they_are():
    """A foreign file's sizes must not multiply: these would be 8 TB each."""
    many = 1_000_000
    column, row = torch.ones(many, 1), torch.ones(1, many)
    state = {
        "a.weight_orig": column, "a.weight_mask": row,
        "b.weight_g": column, "b.weight_v": row,
        "c.parametrizations.weight.original0": row, "c.parametrizations.weight.original1": column,
        "d.weight_orig": column, "d.weight_u": torch.ones(3), "d.weight_v": torch.ones(many),
        "e.weight_orig": column, "f.weight_g": torch.ones(3), "f.weight_v": torch.ones(2, 3),
        "g.weight_orig": torch.ones(2, 2), "g.weight_mask": torch.ones(2, 2, dtype=torch.int64),
    }  # fmt: skip
    found, names = computed(state)
    assert found.keys() == state.keys() and not names


def test_a_network_without_hooks_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = deepcopy(network.state_dict())
    assert make_permanent(network) == [] and computed(before)[1] == []
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
