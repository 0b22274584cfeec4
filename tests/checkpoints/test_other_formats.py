"""Files of other programs: read where that is safe, else named as what they are, in one line."""

import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from crafted import LEGACY, assert_refused, saved
from torch import nn

from data.errors import UserError
from model_compound_scaling.checkpoints import load_network, network_spec, read_checkpoint
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec

pytestmark = pytest.mark.faults


def packed_in(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar(buffer, mode="w") -> None:
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        info = tarfile.TarInfo("net.pt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"1234"))


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def onnx_file() -> bytes:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["x2"])
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [value], [])
    ).SerializeToString()


OPTIMIZER = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1, momentum=0.9).state_dict()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = {"metadata": {}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}
FILES = {
    "empty": (lambda: b"", "damaged: it is empty"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>Not found", "web page"),
    "page in capitals": (lambda: b"<HTML><HEAD>", "web page"),
    "Git LFS": (lambda: POINTER, "Git LFS pointer.*git lfs pull"),
    "shards": (lambda: json.dumps(INDEX, indent=2).encode(), "shards"),
    "JSON": (lambda: b'{"a": [1, 2]}', "JSON"),
    "ONNX": (onnx_file, "ONNX"),
    "npz": (lambda: packed_in(lambda f: np.savez(f, a=np.ones(3))), r"NumPy arrays \(.npz\)"),
    "npy": (lambda: packed_in(lambda f: np.save(f, np.ones(3))), r"NumPy array \(.npy\)"),
    "tar": (lambda: packed_in(tar), "tar archive: unpack"),
    "tar.gz": (lambda: packed_in(lambda f: tar(f, "w:gz")), "gzip.*unpack"),
    "gz": (lambda: gzip.compress(saved({"a": torch.ones(2)})), "gzip.*unpack"),
    "xz": (lambda: lzma.compress(b"123"), "xz.*unpack"),
    "bz2": (lambda: packed_in(lambda f: tar(f, "w:bz2")), "bzip2.*unpack"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*state_dict"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
    "zip of checkpoints": (lambda: zipped("a/resnet.pth", "a/readme.txt"), "unpack it first"),
    "Keras": (lambda: zipped("config.json", "model.weights.h5"), "Keras"),
    "exported": (lambda: zipped("net/archive_format", "net/models/model.json"), "exported"),
    "packed": (lambda: b"EC2T\2" + bytes(99), "packed network, which run_scoring.py reads"),
    "module": (lambda: saved(build(NetworkSpec("lenet-5", 10))), r"LeNet5.*state_dict"),
    "legacy module": (lambda: saved(nn.Linear(2, 2), **LEGACY), r"Linear.*state_dict"),
    "module in a dict": (lambda: saved({"model": nn.Linear(2, 2)}), r"Linear.*state_dict"),
    "optimizer": (lambda: saved(OPTIMIZER), "state of an optimizer, not a network"),
    "optimizer in a dict": (lambda: saved({"epoch": 3, "opt": OPTIMIZER}), "of an optimizer"),
    "tensor": (lambda: saved(torch.ones(3)), "holds a Tensor"),
    "list": (lambda: saved([torch.ones(3)]), "holds a list"),
    "average without names": (
        lambda: saved({"decay": 0.9, "shadow_params": [torch.ones(2)], "collected_params": None}),
        "tensors without names, in the list shadow_params.*copy_to",
    ),
    "one in a dict": (
        lambda: saved({"epoch": 3, "ema": {"shadow_params": [torch.ones(2)]}}),
        "tensors without names, in the list shadow_params",
    ),
    "figures": (
        lambda: saved({"epoch": 3, "best": 1.0}),
        "no tensors, only epoch, best",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_named(tmp_path, kind):
    make, what = FILES[kind]
    path = tmp_path / "net.pt"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=rf"net\.pt .*{what}") as error:
        read_checkpoint(path)
    assert_refused(error.value, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*state_dict") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_refused(error.value, 5)


# ---------------------------------------------------------------- safetensors


@pytest.fixture
def safetensors():
    pytest.importorskip("safetensors")
    from safetensors.torch import save

    return save


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(tmp_path, safetensors, prefix):
    network, path = build(NetworkSpec("resnet20", 10)), tmp_path / "net.safetensors"
    state = {prefix + key: value for key, value in network.state_dict().items()}
    path.write_bytes(safetensors(state, metadata={"format": "pt"}))
    checkpoint = read_checkpoint(path)
    found = load_network(checkpoint, network_spec(checkpoint)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    path.rename(tmp_path / "net.bin")  # whatever it is called
    assert read_checkpoint(tmp_path / "net.bin").state.keys() == state.keys()
    state[f"{prefix}conv1.weight"][0, 0, 0, 0] = torch.nan
    path.write_bytes(safetensors(state))
    with pytest.raises(CheckpointError, match=r"conv1\.weight holds NaN"):
        read_checkpoint(path)


def with_header(header: object, values: bytes = bytes(16), *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + values


def entry(start=0, end=16, shape=(4,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "beyond the file": lambda: with_header({"a": entry(0, 10**12, (25 * 10**10,))}),
    "more elements than bytes": lambda: with_header({"a": entry(shape=(10**12,))}),
    "sizes that overflow": lambda: with_header({"a": entry(shape=(2**33, 2**33))}),
    "negative": lambda: with_header({"a": entry(-4, 12)}),
    "overlapping": lambda: with_header({"a": entry(), "b": entry()}),
    "a hole": lambda: with_header({"a": entry(0, 4, (1,)), "b": entry(8, 16, (2,))}),
    "unknown type": lambda: with_header({"a": entry(dtype="F128")}),
    "no type of torch": lambda: with_header({"a": entry(0, 16, (128,), "F4")}),
    "nested": lambda: with_header(b'{"a":' + b"[" * 100_000),
    "longer than the file": lambda: with_header({"a": entry()}, size=10_000_000),
    "far longer": lambda: with_header({"a": entry()}, size=90 << 20),
    "no JSON": lambda: with_header(b"{" * 30),
    "cut off": lambda: with_header({"a": entry()}, b"123"),
    "large header": lambda: with_header(b"{" + b" " * (9 << 20) + b"}"),
    "no tensors": lambda: with_header({"__metadata__": {"format": "pt"}}, b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path, safetensors, kind):
    path = tmp_path / "net.safetensors"
    path.write_bytes(HOSTILE[kind]())
    with pytest.raises(CheckpointError, match=r"net\.safetensors") as error:
        read_checkpoint(path)
    assert_refused(error.value, 5)


def test_random_damage_to_safetensors(tmp_path, safetensors, full):
    """Refused, or other values under names of as many bytes: they have no checksum."""
    raw = safetensors({f"layer{i}.weight": torch.ones(3, 4) for i in range(3)})
    path, rng = tmp_path / "net.safetensors", random.Random(0)
    refused = 0
    for _ in range(2000 if full else 200):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(300)] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(raw), rng.randrange(len(raw))])])
        try:
            state = read_checkpoint(path).state
            assert sum(t.nbytes for t in state.values()) <= len(raw)
        except CheckpointError as error:
            refused += 1
            assert_refused(error, 5)
    assert refused > 100


def test_without_the_package_safetensors_are_named(tmp_path, monkeypatch):
    (tmp_path / "net.bin").write_bytes(with_header({"a": entry()}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"\.safetensors.*pip install safetensors"):
        read_checkpoint(tmp_path / "net.bin")
