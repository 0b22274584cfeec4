"""ONNX files: codes, codebooks, and the same logits as with plain weights, bit for bit."""

import json
import warnings

import numpy as np
import pytest
import torch
from helpers import call, few_values, save_network, ternary_micronet, with_activations
from structured_networks import FORMS, Structured, images
from torch import nn

import run_scoring
from data.errors import UserError
from model_compound_scaling.checkpoints.network_checkpoint import read_checkpoint
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.quantizers import ActivationQuantizer
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.export import onnx_code_types, onnx_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return ternary_micronet()


@pytest.fixture(scope="module")
def plain(network):
    return onnx_file.float_model(network, SHAPE, 25)


def logits(model, images: torch.Tensor) -> np.ndarray:
    return onnx_file.run(model.SerializeToString(), images.numpy())


def types(model) -> set[str]:
    kinds = {t.data_type for t in model.graph.initializer if t.name.endswith(".codes")}
    return {onnx.TensorProto.DataType.Name(kind) for kind in kinds}


def check(network: nn.Module, plain, kinds: set[str]) -> None:
    coded = onnx_file.with_codes(plain)
    onnx.checker.check_model(coded, full_check=True)
    assert types(coded) == kinds
    for batch in (1, 7):
        images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
        found = logits(coded, images)
        assert np.array_equal(found, logits(plain, images))
        with torch.no_grad():
            expected = network(images)
        assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_two_bit_codes_compute_the_same_bits(network, plain):
    check(network, plain, {"UINT2"})


@pytest.mark.parametrize(("opset", "kind"), [(21, "UINT4"), (18, "INT8"), (13, "INT8")])
def test_older_opsets_store_wider_codes(network, opset, kind):
    model = onnx_file.float_model(network, SHAPE, opset)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    check(network, model, {kind})


@pytest.mark.parametrize("levels", [5, 15])
def test_more_levels_take_four_bits(levels):
    values = torch.linspace(-0.2, 0.3, levels)
    values[levels // 2] = 0
    network = few_values(ternary_micronet(), values.tolist())
    check(network, onnx_file.float_model(network, SHAPE, 25), {"UINT4"})


def test_the_codes_are_the_layers(network, plain):
    """Unpacked by hand: four to a byte, the first in the lowest bits."""
    tensors = {t.name: t for t in onnx_file.with_codes(plain).graph.initializer}
    layers = [n for n, m in network.named_modules() if ".conv" in n]
    assert {n.removesuffix(".weight.codes") for n in tensors if n.endswith("codes")} == {*layers}
    for name in layers:
        weight = network.get_submodule(name).weight.detach()
        data = tensors[f"{name}.weight.codes"].raw_data
        assert len(data) == -(-weight.numel() // 4)
        codes = [(byte >> shift) & 3 for byte in data for shift in (0, 2, 4, 6)]
        values = onnx.numpy_helper.to_array(tensors[f"{name}.weight.values"])
        assert len(values) == 3
        found = values[codes[: weight.numel()]].reshape(weight.shape)
        assert np.array_equal(found, weight.numpy())


def test_an_odd_number_of_codes():
    codes = np.array([1, 2, 0, 2, 1], dtype=np.int64)
    assert onnx_file._packed(codes, 2) == bytes([0b10001001, 0b01])
    assert onnx_file._packed(codes, 4) == bytes([0x21, 0x20, 0x01])
    assert onnx_file._packed(codes, 8) == bytes(codes.tolist())


def test_batchnorm_and_relu_survive(network, plain):
    operations = [node.op_type for node in plain.graph.node]
    modules = list(network.modules())
    assert operations.count("BatchNormalization") == sum(
        isinstance(m, nn.BatchNorm2d) for m in modules
    )
    assert operations.count("Relu") == 5  # stem, one in each block, before pooling


def test_full_precision_and_tiny_layers_stay_floats(plain):
    coded = onnx_file.with_codes(plain)
    names = {t.name for t in coded.graph.initializer}
    assert {"conv1.weight", "linear.weight", "bn1.weight"} <= names
    few = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    few[0].weight.data.fill_(0.5)
    model = onnx_file.float_model(few, (3, 2, 2), 25)
    assert onnx_file.with_codes(model) == model


@pytest.mark.parametrize("model", ["resnet20", "lenet-5"])
def test_networks(model):
    network = build(NetworkSpec(model, 10)).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = 0.1 * layer.weight.sign() * (layer.weight.abs() > 0.05)
    shape = {"lenet-5": (1, 28, 28)}.get(model, SHAPE)
    exported = onnx_file.export(network, shape, opset=25, properties={})
    assert exported.difference < 1e-5 and len(exported.content) < exported.float_bytes


class Branch(nn.Module):
    """Decides by the image's values, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("network", "opset"), [(Branch(), 25), (nn.Sequential(nn.AdaptiveAvgPool2d(3)), 13)]
)
def test_a_network_that_cannot_be_exported(network, opset, capfd):
    with pytest.raises(UserError, match="cannot be exported") as caught:
        onnx_file.export(network.eval(), (1, 2, 2), opset=opset, properties={})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_the_command_line(checkpoint, tmp_path, capsys):
    target = tmp_path / "deep" / "net.onnx"
    assert run_scoring.main(["--t-model", str(checkpoint), "--onnx", str(target)]) == 0
    out = capsys.readouterr().out
    assert f"{target.stat().st_size:,} bytes" in out and "with plain float weights" in out
    model = onnx.load(target)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["model"] == "cifar_micronet"
    assert json.loads(properties["class_names"])[3] == "class 3"
    assert json.loads(properties["mean"]) == [0.5, 0.5, 0.4] and properties["image_size"] == "32"
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch" and model.graph.output[0].name == "logits"
    assert target.stat().st_size < 0.35 * checkpoint.stat().st_size


def test_a_thin_network_as_onnx(checkpoint, network, tmp_path):
    content = read_checkpoint(checkpoint)
    with torch.no_grad():
        block = content.state
        block["layer1.0.conv1.weight"][3] = 0
        block["layer1.0.bn2.bias"][3], block["layer1.0.bn2.running_mean"][3] = -1, 0
    torch.save({**content.content, "state_dict": content.state}, checkpoint)
    files = [tmp_path / "thin.pt", tmp_path / "thin.onnx"]
    flags = ["--t-model", str(checkpoint), "--thin", str(files[0]), "--onnx", str(files[1])]
    assert run_scoring.main(flags) == 0
    shapes = {t.name: list(t.dims) for t in onnx.load(files[1]).graph.initializer}
    assert shapes["layer1.0.conv1.weight.codes"] == [15, 16, 3, 3]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--onnx", "net.pt"], "name another output file"),
        (["--onnx", "a", "--json", "a"], "need different files"),
        (["--onnx", "a", "--onnx-opset", "12"], "--onnx-opset"),
    ],
)
def test_mistakes(checkpoint, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    code, _, err = call(run_scoring.main, capsys, "--t-model", "net.pt", *flags)
    assert (code, words in err, err.count("\n")) == (2, True, 1), err
    assert {p.name for p in tmp_path.iterdir()} == before


def test_absent_packages_are_named(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(onnx_code_types, "PACKAGES", ("onnx", "no_such_package"))
    assert run_scoring.main(["--t-model", str(checkpoint), "--onnx", "net.onnx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "no_such_package: pip install -r requirements-export.txt" in captured.err


def quick(cases, *names):
    """All cases, those not named only among the slow tests."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in cases]


@pytest.mark.parametrize("opset", [25, 17])
@pytest.mark.parametrize("form", quick(FORMS, "features_first"))
def test_the_logits_of_networks_that_return_more(form, opset):
    torch.manual_seed(0)
    network = Structured(form, 5).eval()
    exported = onnx_file.export(network, (3, 8, 8), opset=opset, properties={"num_classes": 5})
    model = onnx.load_from_string(exported.content)
    assert [output.name for output in model.graph.output] == ["logits"]
    names = {t.name.removesuffix(".codes") for t in model.graph.initializer}
    assert {"first.weight", "head.bias"} <= names
    network.form = "plain"
    found = torch.from_numpy(onnx_file.run(exported.content, images(4).numpy()))
    assert torch.allclose(found, network(images(4)), atol=1e-5)
    assert not network._forward_hooks


class Unwritable(nn.Module):
    """What the exporters cannot write, or write as another function."""

    WAYS = {  # noqa: RUF012
        "operator": lambda x: torch.linalg.eigvals(x[:, :, None] * x[:, None]).real,
        "branch": lambda x: x if x.sum() > 0 else -x,
        "loop": lambda x: sum(x for _ in range(int(x[0, 0].abs() * 4) + 2)),
        "its own error": lambda x: (_ for _ in ()).throw(
            KeyError("\x1b[31mred\x1b[0m\n\nand more")
        ),
        "numpy": lambda x: torch.from_numpy(np.sin(x.detach().numpy())),
        "random": lambda x: x + torch.multinomial(x.softmax(1), 4),
    }

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear = way, nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.WAYS[self.way](x.flatten(1)))


@pytest.mark.parametrize("opset", quick([1, 7, 13, 17, 18, 25, 99], 17, 25))
@pytest.mark.parametrize("way", quick(Unwritable.WAYS, "operator", "branch"))
def test_every_failure_is_one_plain_line(way, opset, capfd):
    network = Unwritable(way).eval()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            onnx_file.export(network, (1, 2, 2), opset=opset, properties={"num_classes": 2})
    except UserError as error:
        text = str(error)
        assert "\n" not in text and "\x1b" not in text and len(text) < 300
        assert text.startswith("--onnx")
    else:
        assert way == "numpy" and opset in (18, 25)  # which torch.export understands
    assert not caught and capfd.readouterr() == ("", "")


def test_a_failed_export_writes_nothing_and_says_why_in_a_line(tmp_path, capfd, monkeypatch):
    """Also not the files that could be written, as ever."""
    eigenvalues = lambda f, g, y, a: torch.linalg.eigvals(y[:, :, None] * y[:, None]).real  # noqa: E731
    monkeypatch.setitem(FORMS, "plain", eigenvalues)
    model = "structured_networks:plain"
    network, data = Structured("plain", 5), {"image_size": 8}
    source = save_network(tmp_path / "net.pt", network, NetworkSpec(model, 5), **data)
    before = {path.name for path in tmp_path.iterdir()}
    for opset in (25, 17):
        names = ("--onnx", "a.onnx", "--thin", "a.pt", "--json", "a.json", "--export", "a.ec2t")
        files = [tmp_path / name if "." in name else name for name in names]
        flags = ["--t-model", source, "--model", model, "--onnx-opset", opset, "--no-cuda", *files]
        code, out, err = call(run_scoring.main, capfd, *flags)
        *warned, said = err.splitlines()
        assert code == 2 and "cannot be exported" in said and "linalg_eig" in said
        assert all(line.startswith("warning: ") for line in warned)
        assert "graph" not in out and "\x1b" not in out + err
        assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("opset", "kinds"),
    [
        (25, {"INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8"}),
        pytest.param(21, {"INT4", "UINT4", "INT8", "UINT8"}, marks=pytest.mark.slow),
        pytest.param(18, {"INT8", "UINT8"}, marks=pytest.mark.slow),
        (13, {"INT8", "UINT8"}),
    ],
)
def test_quantized_activations_are_integers(opset, kinds):
    """In onnxruntime as it is by default, whose optimizer knows these operations."""
    network, spec = with_activations(ternary_micronet())
    exported = onnx_file.export(network, SHAPE, opset=opset, properties={})
    model = onnx.load_from_string(exported.content)
    operations = [node.op_type for node in model.graph.node]
    for name in ("QuantizeLinear", "DequantizeLinear"):
        assert operations.count(name) == len(spec.activations)
    assert not {"Round", "Div", "Min", "Max"} & set(operations)
    zeros = {t.data_type for t in model.graph.initializer if t.name.endswith(".zero")}
    assert {onnx.TensorProto.DataType.Name(kind) for kind in zeros} == kinds
    images = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(2))
    found = torch.from_numpy(onnx_file.run(exported.content, images.numpy()))
    with torch.no_grad():
        expected = network(images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_rounding_changes_is_no_reason_to_refuse(monkeypatch):
    """Codes at ties: more than the bound, less than noise in the parameters does."""
    network, _ = with_activations(ternary_micronet())
    monkeypatch.setattr(onnx_file, "MOST_DIFFERENCE", 0.0)
    assert onnx_file.export(network, SHAPE, opset=25, properties={}).difference > 0


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("before", "bits"), [(nn.ReLU(), 4), (nn.MaxPool2d(2), 4), (nn.Flatten(), 2)]
)
def test_few_bits_behind_what_onnxruntime_optimizes(before, bits, signed):
    """It drops ReLU where the type's smallest code is 0, and moves quantizers before pooling
    and changes of shape."""
    quantizer = ActivationQuantizer(bits, signed)
    quantizer.step.data.fill_(0.2)
    network = nn.Sequential(before, quantizer, nn.Flatten(), nn.LazyLinear(3)).eval()
    network(torch.zeros(1, 4, 8, 8))
    assert onnx_file.export(network, (4, 8, 8), opset=25, properties={}).difference <= 1e-5


class Rounds(nn.Module):
    """What looks like a quantizer, in part."""

    def forward(self, x):
        y = torch.round(x / 0.25).clamp(-3, 5) * 0.25  # one of three bits and a half
        y = y + torch.round(x / 0.5) * 0.5  # without bounds
        y = y + torch.round(x / 0.6).clamp(0, 9) * 0.25  # of another step
        z = torch.round(x / 0.7)
        return (y + z.clamp(-1, 1) * 0.7 + z + torch.round(x * 0.3)).flatten(1)


@pytest.mark.parametrize("opset", [pytest.param(21, marks=pytest.mark.slow), 13])
def test_other_rounding_stays_as_it_is(opset):
    network = Rounds().eval()
    exported = onnx_file.export(network, (1, 4, 4), opset=opset, properties={})
    model = onnx.load_from_string(exported.content)
    operations = [node.op_type for node in model.graph.node]
    assert operations.count("QuantizeLinear") == 1 and operations.count("Round") == 4
    images = torch.randn(9, 1, 4, 4)
    assert np.allclose(onnx_file.run(exported.content, images.numpy()), network(images), atol=1e-6)
