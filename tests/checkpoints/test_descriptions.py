"""What a checkpoint says about its network and data, edited by hand."""

import pytest
import torch
from crafted import assert_refused

from model_compound_scaling.checkpoints.atomic_save import write_file
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import (
    load_network,
    network_content,
    read_checkpoint,
)
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec

pytestmark = pytest.mark.faults

SPEC = NetworkSpec("cifar_micronet", 10, {"blocks": [1, 1, 1], "channels": [8, 8, 8], "stem": 8})
EDITS = {
    "network": [
        ("num_classes", "10"),
        ("num_classes", 10**9),
        ("num_classes", -1),
        ("num_classes", True),
        ("num_classes", None),
        ("arguments", []),
        ("arguments", None),
        ("arguments", {}),
        ("arguments", {**SPEC.arguments, "blocks": [1, 1, -1]}),
        ("arguments", {**SPEC.arguments, "blocks": [1, 1, 10**9]}),
        ("arguments", {**SPEC.arguments, "blocks": [1, 1]}),
        ("arguments", {**SPEC.arguments, "blocks": 3}),
        ("arguments", {**SPEC.arguments, "channels": [8, 8, 10**9]}),
        ("arguments", {**SPEC.arguments, "channels": [8.0, 8, 8]}),
        ("arguments", {**SPEC.arguments, "stem": "8"}),
        ("arguments", {**SPEC.arguments, "head": []}),
        ("arguments", {**SPEC.arguments, "base": 1}),
        ("model", "resnet21"),
        ("model", "torchvision:nothing"),
        ("model", 20),
        ("model", ["resnet20"]),
        ("model", "efficientnet-b0"),
        ("permanent", 1),
        ("permanent", "yes"),
        ("permanent", None),
        ("activations", ["linear"]),
        ("activations", {"linear": "u9"}),
        ("activations", {"linear": 8}),
        ("activations", {"linear": "u8\n"}),
        ("activations", {3: "u8"}),
        ("activations", None),
    ],
    "data": [
        ("dataset", 3),
        ("image_size", [32]),
        ("image_size", 0),
        ("image_size", 10**9),
        ("mean", [0.5, 0.5]),
        ("mean", "0.5"),
        ("mean", [0.5]),
        ("mean", [float("nan")] * 3),
        ("std", [0.0, 1.0, 1.0]),
        ("std", [10**400] * 3),
        ("std", None),
        ("class_names", "abc"),
        ("class_names", [1, 2]),
    ],
}
RECORDED = {
    "dataset": "Shapes",
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "class_names": list("abcdefghij"),
}


@pytest.fixture(scope="module")
def described() -> dict:
    return network_content(build(SPEC), SPEC, RECORDED)


@pytest.mark.parametrize(("group", "field", "value"), [(g, *e) for g in EDITS for e in EDITS[g]])
def test_edited_descriptions_are_refused(tmp_path, described, group, field, value):
    path = tmp_path / "net.pt"
    write_file(described, path)
    assert network_spec(read_checkpoint(path)) == SPEC
    write_file({**described, group: {**described[group], field: value}}, path)
    with pytest.raises(CheckpointError, match=r"net\.pt") as error:
        read_checkpoint(path)
    assert_refused(error.value, 5)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_data_that_is_no_dict_is_refused(tmp_path, described, value):
    path = tmp_path / "net.pt"
    write_file({**described, "data": value}, path)
    with pytest.raises(CheckpointError, match=r"net\.pt: data is"):
        read_checkpoint(path)


STEPS = {"zero": 0.0, "negative": -1.0, "0 in float32": 1e-300, "infinite in float32": 1e300}


@pytest.mark.parametrize("edit", ["bn1", "nothing", "missing", *STEPS])
def test_activations_that_are_not_the_network_s_are_refused(tmp_path, described, edit):
    """Of what is no layer, or none of the network; without a step in the file; no step."""
    path, name = tmp_path / "net.pt", edit if edit in ("bn1", "nothing") else "linear"
    network = {**described["network"], "activations": {name: "u8"}}
    step = torch.tensor(STEPS.get(edit, 1.0), dtype=torch.float64)
    steps = {} if edit == "missing" else {f"{name}.quantizer.step": step}
    state = described["state_dict"] | steps
    write_file({**described, "network": network, "state_dict": state}, path)
    with pytest.raises(CheckpointError) as error:
        load_network(checkpoint := read_checkpoint(path), network_spec(checkpoint))
    assert_refused(error.value, 5)
    assert str(path) in str(error.value)
