"""Networks of one's own whose layers share a tensor, and files that say otherwise."""

import own_networks
import pytest
import torch
from torch.nn.utils import prune

from model_compound_scaling.checkpoints import load_network, network_spec, read_checkpoint
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import network_content

LAYERS = ("1.weight", "2.weight", "3.weight")


def opened(path, content, name):
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    spec = network_spec(checkpoint, model=f"own_networks:{name}")
    return load_network(checkpoint, spec), spec


def masked(seed: int):
    """`tied_masked` after pruning: 1 and 2 alike, 3 not; its logits' reference is torch's."""
    torch.manual_seed(seed)
    network = own_networks.tied_masked(4)
    for layer, amount in zip(network[1:4], (0.5, 0.5, 0.2), strict=True):
        prune.l1_unstructured(layer, "weight", amount)
    return network


@pytest.mark.parametrize(
    ("name", "network", "parameters"),
    [
        ("tied", own_networks.tied(4), 1),
        ("tied_pruned", own_networks.tied_pruned(4), 2),
        ("tied_masked", own_networks.tied_masked(4), 1),
        ("tied_masked", masked(0), 2),
    ],
)
@torch.no_grad()
def test_a_file_s_network_is_what_it_was(tmp_path, name, network, parameters):
    """As saved by torch; again, from the file that describes it; whatever the builder's masks."""
    image = torch.randn(2, 3, 12, 12)
    expected, content = network(image), network.state_dict()
    for _ in range(3):
        found, spec = opened(tmp_path / "a.pt", content, name)
        assert torch.equal(found(image), expected)
        assert len({id(found.get_parameter(layer)) for layer in LAYERS}) == parameters
        assert spec.permanent == (name != "tied")
        content = network_content(found, spec, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [("tied", "3.weight and 1.weight differ"), ("one_layer_twice", "3.weight and 1.weight differ")],
)
def test_values_that_one_tensor_cannot_have_are_refused(tmp_path, name, said):
    state = {key: value.clone() for key, value in own_networks.tied(4).state_dict().items()}
    state["3.weight"] += 1
    with pytest.raises(CheckpointError, match=rf"{said}.* one tensor in own_networks:{name}: the"):
        opened(tmp_path / "a.pt", state, name)
    bare = {key: value for key, value in state.items() if key != "3.weight"}
    with pytest.raises(CheckpointError, match=r"3\.weight is missing"):
        opened(tmp_path / "a.pt", bare, name)


def test_a_layer_used_twice_under_two_names(tmp_path):
    network = own_networks.one_layer_twice(4)
    state = network.state_dict()
    found, _ = opened(tmp_path / "a.pt", state, "one_layer_twice")
    assert found[2] is found[3] and torch.equal(found[3].weight, state["3.weight"])
