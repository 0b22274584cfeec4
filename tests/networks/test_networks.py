"""The networks' published figures, their keys, and the table they are in."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import round_channels, scaled_shape
from model_compound_scaling.networks.registry import (
    REGISTRY,
    NetworkSpec,
    canonical_name,
    default_spec,
    table_row,
)


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


def macs(model: str, *, size: int, classes: int = 1000, channels: int = 3) -> int:
    with torch.device("meta"):
        network = build(default_spec(model, classes)).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, channels, size, size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("model", REGISTRY)
def test_every_network_maps_images_to_logits(model):
    row = table_row(model)
    with torch.device("meta"):
        network = build(default_spec(model, 7)).eval()
        images = torch.empty(2, row.channels, row.image_size, row.image_size)
        assert network(images).shape == (2, 7)
        assert network.get_submodule(row.classifier).weight.shape[0] == 7


def test_micronet_figures():
    shape = scaled_shape("cifar_micronet", depth=1, width=1)
    baseline = build(NetworkSpec("cifar_micronet", 100, shape))
    assert parameters(baseline) == pytest.approx(0.67e6, abs=0.005e6)
    with torch.device("meta"):
        largest = build(default_spec("cifar_micronet", 100))
    assert parameters(largest) == pytest.approx(8.0e6, abs=0.06e6)
    assert sum(".conv" in name for name, _ in largest.named_parameters()) == 138


# thesis table 5.1: depth, width, parameters with 100 classes
@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(1.9, 1.0, 1.35), (1.7, 1.1, 1.39), (1.6, 1.1, 1.39), (1.4, 1.2, 1.53), (1.2, 1.3, 1.38)],
)
def test_micronet_grid(depth, width, millions):
    spec = NetworkSpec(
        "cifar_micronet", 100, scaled_shape("cifar_micronet", depth=depth, width=width)
    )
    with torch.device("meta"):
        assert parameters(build(spec)) / 1e6 == pytest.approx(millions, abs=0.011)


def test_rounding_of_channels():
    assert [round_channels(c) for c in (1, 16, 19.2, 20, 30.3, 121.1)] == [8, 16, 24, 24, 32, 120]
    for channels in torch.linspace(1, 400, 999).tolist():
        rounded = round_channels(channels)
        assert rounded % 8 == 0 and rounded >= max(8, 0.9 * channels)
    # a product that is an integer but for rounding errors is no extra block
    assert scaled_shape("cifar_micronet", depth=1.1 * 10 / 7, width=1)["blocks"] == [11, 11, 11]


def test_keys_of_released_networks():
    micronet = build(default_spec("image_micronet", 10)).state_dict()
    for key in ("conv1.weight", "bn1.bias", "layer7.0.bn3.weight", "layer2.0.shortcut.1.weight"):
        assert key in micronet
    assert "conv2.weight" in micronet and "linear.bias" in micronet
    resnet = build(NetworkSpec("resnet20", 10)).state_dict()
    assert "layer3.2.conv2.weight" in resnet and not any("shortcut" in key for key in resnet)


def test_resnet_and_lenet_figures():
    assert parameters(build(NetworkSpec("resnet20", 10))) == 269_722
    assert macs("resnet20", size=32, classes=10) - 64 * 10 == 40_550_400
    assert macs("resnet18", size=224) == 1_814_073_344
    assert parameters(build(NetworkSpec("lenet-5", 10))) == 61_706


@pytest.mark.parametrize(("size", "expected"), [(224, 569_651_680), (240, 686_802_832)])
@pytest.mark.parametrize("origin", ["torchvision", "tf"])
def test_efficientnet_b1_figures(size, expected, origin):
    with torch.device("meta"):
        network = build(NetworkSpec("efficientnet-b1", 1000, {"origin": origin})).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() // 2 == expected


def test_option_a_shortcut_is_every_second_pixel_between_zero_channels():
    block = build(NetworkSpec("resnet20", 10)).layer2[0]
    x = torch.randn(2, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_names():
    assert canonical_name("cifar-micronet") == "cifar_micronet"
    assert canonical_name("EfficientNet_B1") == "efficientnet-b1"
    assert canonical_name("lenet5") == "lenet-5"
    with pytest.raises(UserError, match="did you mean lenet-5"):
        canonical_name("lenet-6")


def test_networks_from_elsewhere():
    network = build(NetworkSpec("torchvision:mobilenet_v3_small", 10))
    assert network.classifier[-1].out_features == 10
    assert build(NetworkSpec("torchvision.models:resnet18", 3)).fc.out_features == 3
    for wrong in (
        "nowhere:f",
        "torch.nn:Nothing",
        "torchvision:resnet19",
        "torch:relu",
        "math:sqrt",
    ):
        with pytest.raises(UserError):
            build(NetworkSpec(wrong, 10))
