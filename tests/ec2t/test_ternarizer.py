"""Ternarizer as a loop of one's own uses it, with the optimizer's zero_grad and nothing else."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_quantization.ec2t import Ternarizer

FROZEN = 4  # steps before the codes stay


def make(**settings):
    """A network, its ternarizer and optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))  # fmt: skip
    ternarizer = Ternarizer(network, initial_scale=0.4, gamma=0.2, **settings)
    groups = ternarizer.parameter_groups(lr=1e-2, centroid_lr=1e-3, weight_decay=1e-4)
    return network, ternarizer, torch.optim.Adam(groups)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 2, 8, 8, generator=generator)
    return images, torch.randint(0, 3, (6,), generator=generator)


def loop(network, ternarizer, optimizer, steps, *, frozen=FROZEN, parts=1):
    """The example's loop; `parts`: micro-batches a step."""
    for step in steps:
        ternarizer.freeze(step >= frozen)
        optimizer.zero_grad()
        for images, labels in zip(*(tensor.chunk(parts) for tensor in batch(step)), strict=True):
            (F.cross_entropy(network(images), labels) / parts).backward()
        ternarizer.prepare_step()
        optimizer.step()
        ternarizer.finish_step()
    return network.state_dict()


def assert_same(first, second):
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_by_default_all_convolutions_but_the_first():
    network, ternarizer, _ = make()
    assert ternarizer.names == ["1.weight", "3.weight"]
    other = make(names=(name for name in ("6.weight", "1.weight")))[1]
    assert other.names == ["6.weight", "1.weight"]
    assert list(network.state_dict()) == [f"{i}.{n}" for i in "0136" for n in ("weight", "bias")]
    shared = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    shared[2].weight = shared[0].weight  # what sees the image stays as it is
    assert Ternarizer(shared, initial_scale=0.4, gamma=0.2).names == ["1.weight"]


def test_groups_hold_every_trained_parameter_once():
    network, ternarizer, _ = make()
    network[0].bias.requires_grad_(False)
    groups = ternarizer.parameter_groups(lr=3.0, centroid_lr=2.0, weight_decay=1.0)
    latent, centroids, others = (group["params"] for group in groups)
    assert latent == [ternarizer.latent] and centroids == [ternarizer.centroids]
    expected = [p for p in network.parameters() if p.requires_grad]
    assert {*map(id, others)} == {*map(id, expected)} - {*map(id, ternarizer.weights)}
    # AdamW, too, must not shrink latent weights
    values = [(g["lr"], g["weight_decay"]) for g in torch.optim.AdamW(groups).param_groups]
    assert values == [(3.0, 0.0), (2.0, 0.0), (3.0, 1.0)]


def test_gradients_of_one_step_do_not_reach_the_next():
    """The optimizer's zero_grad does not know the network's ternary weights."""
    network, ternarizer, optimizer = make()
    network(batch(9)[0]).sum().backward()  # of another loop, before the network becomes ternary
    assert all(weight.grad.any() for weight in ternarizer.weights)
    Ternarizer(network, ternarizer.names, initial_scale=0.4, gamma=0.2)
    assert all(weight.grad is None for weight in ternarizer.weights)
    network, ternarizer, optimizer = make()
    other, other_ternarizer, other_optimizer = make()
    for step in range(3):
        loop(network, ternarizer, optimizer, [step])
        assert all(weight.grad is None for weight in ternarizer.weights)
        other.zero_grad()
        loop(other, other_ternarizer, other_optimizer, [step])
    assert_same(network.state_dict(), other.state_dict())


def test_another_strength_keeps_the_gradients():
    network, ternarizer, _ = make()
    network(batch(0)[0]).sum().backward()
    before = [weight.grad.clone() for weight in ternarizer.weights]
    zeros = ternarizer.zeros()
    ternarizer.set_gamma(0.8)
    assert ternarizer.zeros() > zeros
    assert all(map(torch.equal, before, (weight.grad for weight in ternarizer.weights)))


def test_gradients_of_several_batches_add_up():
    whole, halves = (loop(*make(), range(5), parts=parts) for parts in (1, 2))
    assert all(torch.allclose(whole[key], halves[key], atol=1e-5) for key in whole)


def test_a_gradient_scaler_changes_nothing():
    """One that unscales before the step, as it does for optimizers that are not fused."""
    expected = loop(*make(), range(4))
    network, ternarizer, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        images, labels = batch(step)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(network(images), labels)).backward()
        ternarizer.prepare_step()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        ternarizer.finish_step()
    assert_same(network.state_dict(), expected)
    # a step that overflows is skipped
    (network(batch(5)[0]) * torch.inf).sum().backward()
    ternarizer.prepare_step()
    scaler.step(optimizer)
    ternarizer.finish_step()
    assert_same(network.state_dict(), expected)


def test_under_autocast_codes_and_values_are_float32():
    network, ternarizer, optimizer = make()
    for step in range(3):
        images, labels = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        ternarizer.prepare_step()
        optimizer.step()
        ternarizer.finish_step()
    tensors = (*ternarizer.weights, ternarizer.latent, ternarizer.centroids, ternarizer.layers.lam)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all(len(weight.unique()) <= 3 for weight in ternarizer.weights)


def test_freezing_is_a_mode():
    network, ternarizer, optimizer = make()
    codes = []
    for steps, frozen in ((range(3), 9), (range(3, 6), 0), (range(6, 30), 99)):
        loop(network, ternarizer, optimizer, steps, frozen=frozen)
        codes.append(torch.cat(ternarizer.codes()))
        ternarizer.freeze(frozen == 0)  # the same again
    moved = [not torch.equal(a, b) for a, b in pairwise(codes)]
    assert moved == [False, True]


@pytest.mark.parametrize("settings", [{}, {"levels": 5}, {"prune": True}, {"ttq_threshold": 0.1}])
@pytest.mark.parametrize("stop", [2, 6])
def test_three_state_dicts_hold_everything(stop, settings, tmp_path):
    """As docs/own-loop.md says, before the codes are frozen and after."""
    expected = loop(*make(**settings), range(9))
    parts = make(**settings)
    loop(*parts, range(stop))
    torch.save([part.state_dict() for part in parts], tmp_path / "last.pt")
    states = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.manual_seed(1)
    parts = make(**settings)
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    assert_same(loop(*parts, range(stop, 9)), expected)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, {"names": []}, "nothing to quantize"),
        (None, {"names": ["1"]}, "'1' is no parameter"),
        (None, {"levels": 4}, "levels=4"),
        (None, {"levels": 1}, "levels=1"),
        (lambda network: network.half(), {}, "1.weight is torch.float16"),
        (lambda network: network.requires_grad_(False), {}, "1.weight cannot be trained"),
    ],
)
def test_what_cannot_be_quantized_is_said(change, settings, message):
    network = make()[0]
    if change:
        change(network)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=message):
        Ternarizer(network, **settings, initial_scale=0.4, gamma=0.2)
    assert all(map(torch.equal, before, network.parameters()))
