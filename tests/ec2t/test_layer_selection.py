"""Which layers are quantized, per family."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.few_values import few_values
from model_compound_scaling.networks.registry import NetworkSpec, default_spec
from model_quantization.layer_selection import (
    freeze_quantized,
    pruned_names,
    ternarized_names,
)


def names(model, family, classes=10, **settings):
    with torch.device("meta"):
        return ternarized_names(build(default_spec(model, classes)), family=family, **settings)


def test_every_convolution_inside_the_blocks():
    assert len(names("cifar_micronet", "micronet")) == 138
    assert len(names("resnet20", "resnet")) == 18
    assert len(names("resnet18", "resnet")) == 16
    image = names("image_micronet", "micronet")
    assert "conv1.weight" not in image and "conv2.weight" not in image
    assert not any("shortcut" in name for name in image)


def test_efficientnet_expand_project_head():
    chosen = names("efficientnet-b1", "efficientnet", 1000)
    # 23 project, 21 expand (the first stage's two blocks do not expand), 1 head
    assert len(chosen) == 45
    with torch.device("meta"):
        network = build(NetworkSpec("efficientnet-b1", 1000))
    convs = [network.get_submodule(name.removesuffix(".weight")) for name in chosen]
    assert all(conv.kernel_size == (1, 1) and conv.groups == 1 for conv in convs)
    assert not any(".fc" in name for name in chosen)


def test_lenet_and_other_networks():
    expected = ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert names("lenet-5", "lenet") == expected
    other = names("torchvision:squeezenet1_1", "other")
    assert len(other) == 25 and other[0] != "features.0.weight"
    assert names("resnet20", "resnet", pattern="^linear") == ["linear.weight"]
    with pytest.raises(UserError, match="matches no"):
        names("resnet20", "resnet", pattern="nothing")


def test_pruning_families():
    network = build(NetworkSpec("efficientnet-b0", 10))
    assert len(pruned_names(network, families=["se"])) == 32
    assert pruned_names(network, families=["fc"]) == ["classifier.1.weight"]
    assert len(pruned_names(network, families=["dw"])) == 16
    with pytest.raises(UserError, match="nothing to prune"):
        pruned_names(build(NetworkSpec("resnet20", 10)), families=["se"])


def test_quantized_layers_are_recognised_by_value():
    assert few_values(torch.tensor([0.0, 0.3, -0.1, 0.3])).tolist() == pytest.approx([-0.1, 0, 0.3])
    assert few_values(torch.zeros(3)).tolist() == [0]
    assert few_values(torch.tensor([0.0, 0.3, 0.2])) is not None  # two values of one sign
    assert few_values(torch.tensor([0.3, -0.1])) is None
    many = torch.arange(-7.0, 8).repeat(4)
    assert few_values(many) is not None and few_values(many + 0.5) is not None  # 0 or not
    assert few_values(many[:59]) is None and few_values(torch.arange(-8.0, 8).repeat(4)) is None
    network = build(NetworkSpec("resnet20", 10))
    network.layer1[0].conv1.weight.data.sign_().mul_(0.1)[0] = 0
    network.layer1[1].conv1.weight.data.sign_()  # binary
    names = ["layer1.0.conv1.weight", "layer1.1.conv1.weight"]
    assert freeze_quantized(network) == names
    assert not any(network.get_parameter(name).requires_grad for name in names)


def test_binary_layers_are_not_pruned():
    network = build(NetworkSpec("lenet-5", 10))
    network.fc1.weight.data.sign_().mul_(0.2)
    assert pruned_names(network, families=["fc"]) == ["fc2.weight", "fc3.weight"]


class Shared(nn.Module):
    """Convolutions tied by parameter, modules under two names, tied linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(8, 8, 3, groups=8) for _ in range(3))
        self.again, self.fc, self.head = self.a, nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight, self.head.weight = self.stem.weight, self.fc.weight


def test_tied_layers_are_named_once_and_share_their_rules():
    network = Shared()
    # what is tied to the first convolution stays as that does
    assert ternarized_names(network, family="other") == ["a.weight"]
    assert ternarized_names(network, family="other", pattern=".") == [
        "stem.weight", "a.weight", "fc.weight"
    ]  # fmt: skip
    for pattern, name in (("^b", "stem.weight"), ("again", "a.weight"), ("head", "fc.weight")):
        assert ternarized_names(network, family="other", pattern=pattern) == [name]
    assert pruned_names(network, families=["fc"]) == ["fc.weight"]
    assert pruned_names(network, families=["dw", "fc"]) == ["stem.weight", "a.weight", "fc.weight"]
    network.stem.weight.data.sign_()
    assert freeze_quantized(network) == ["stem.weight"] and not network.b.weight.requires_grad
    network.a = network.again = nn.Identity()
    with pytest.raises(UserError, match="no second convolution"):
        ternarized_names(network, family="other")


def test_weights_that_a_hook_computes_are_refused_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    for layer in network[1:]:
        layer.raw = nn.Parameter(layer.weight.detach().clone())
        del layer._parameters["weight"]
        layer.weight = layer.raw.sign()
        layer.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.raw.sign()))
    for choose in (
        lambda: pruned_names(network, families=["fc"]),
        lambda: ternarized_names(network, family="other"),
    ):
        with pytest.raises(UserError, match=r"\.weight is computed by the network's own code"):
            choose()
    assert freeze_quantized(network) == []
