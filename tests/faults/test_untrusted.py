"""Files from elsewhere: none runs code, none takes more memory than its bytes account for."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from data import load_data
from data.errors import CheckpointError, DataError, UserError
from model_compound_scaling import archives, pickles, storage
from model_compound_scaling.checkpoints import (
    network_content,
    network_spec,
    read_checkpoint,
    write_file,
)
from model_compound_scaling.registry import NetworkSpec, build
from model_compound_scaling.storage import read_file, read_generation
from model_scoring.files import load_layer


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Getstate:
    """Pickles as an object whose state is set by a call."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __reduce__(self):
        return OrderedDict, (), {"hooks": self.inner}


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


LEGACY = {"_use_new_zipfile_serialization": False}
PAYLOADS = {
    "os.system": lambda m: saved({"state_dict": Call(os.system, f"touch {m}")}),
    "eval": lambda m: saved({"a": Call(eval, f"open({str(m)!r}, 'w').close()")}),
    "exec": lambda m: saved({"a": torch.ones(2), "b": Call(exec, f"open({str(m)!r}, 'w')")}),
    "subprocess": lambda m: saved({"a": Call(subprocess.check_call, ["touch", str(m)])}),
    "in the optimizer's state": lambda m: saved(
        {
            "state_dict": {"a": torch.ones(2)},
            "optimizer": {"state": {0: {"step": [Call(os.system, f"touch {m}")]}}},
        }
    ),
    "in an object's state": lambda m: saved(
        {"state_dict": Getstate(Call(os.system, f"touch {m}"))}
    ),
    "legacy format": lambda m: saved({"a": Call(os.system, f"touch {m}")}, **LEGACY),
    "STACK_GLOBAL": lambda m: pickle.dumps({"a": Call(os.system, f"touch {m}")}, protocol=4),
    "text pickle": lambda m: pickle.dumps({"a": Call(os.system, f"touch {m}")}, protocol=0),
    "plain pickle": lambda m: pickle.dumps({"a": Call(os.system, f"touch {m}")}, protocol=2),
    "torch loading bytes": lambda m: saved(
        {"a": Call(torch.storage._load_from_bytes, saved(Call(os.system, f"touch {m}"), **LEGACY))}
    ),
    "torch rebuilding a type": lambda m: saved(
        {"a": Call(torch._tensor._rebuild_from_type_v2, os.system, object, (f"touch {m}",), {})}
    ),
    "numpy objects": lambda m: numpy_objects(Call(os.system, f"touch {m}")),
}


def numpy_objects(payload) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def execute(raw: bytes) -> None:
    """What a careless reader does."""
    readers = (
        lambda: torch.load(io.BytesIO(raw), weights_only=False),
        lambda: pickle.loads(raw),
        lambda: np.load(io.BytesIO(raw), allow_pickle=True),
    )
    for read in readers:
        try:
            read()
        except Exception:
            continue


def assert_refused(error: UserError, code: int) -> None:
    assert error.exit_code == code and "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_is_executed(tmp_path, name):
    marker, path = tmp_path / "executed", tmp_path / "net.pt"
    raw = PAYLOADS[name](marker)
    execute(raw)
    assert marker.exists()  # it is alive
    marker.unlink()
    path.write_bytes(raw)
    for read in (read_file, read_checkpoint, read_generation, load_layer):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert_refused(error.value, 5)
    layer = path.with_suffix(".npz")
    path.rename(layer)
    with pytest.raises(CheckpointError):
        load_layer(layer)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_torch_alone_is_safe_too(tmp_path, monkeypatch):
    """The second line of defence holds where the first is taken away."""
    monkeypatch.setattr(storage, "check", lambda *_, **__: None)
    marker, path = tmp_path / "executed", tmp_path / "net.pt"
    for payload in PAYLOADS.values():
        path.write_bytes(payload(marker))
        with pytest.raises(CheckpointError):
            read_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("victim", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_data_batch_is_not_executed(tmp_path, victim):
    marker = tmp_path / "executed"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}))
    (folder / victim).write_bytes(pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(DataError) as error:
        load_data("CIFAR10", data_path=tmp_path)
    assert_refused(error.value, 4)
    assert not marker.exists()


def test_a_description_does_not_choose_code(tmp_path, monkeypatch):
    """`module:function` in a checkpoint would import and call whatever the file names."""
    marker = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef net(**_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path, spec = tmp_path / "net.pt", NetworkSpec("resnet20", 10)
    content = network_content(build(spec), spec, {})
    write_file({**content, "network": {**content["network"], "model": "evil:net"}}, path)
    with pytest.raises(CheckpointError, match="--model evil:net"):
        network_spec(read_checkpoint(path))
    content["network"] = {"model": "torch.hub:load", "num_classes": 10, "arguments": {"a": 1}}
    write_file(content, path)
    with pytest.raises(CheckpointError, match="arguments"):
        network_spec(read_checkpoint(path), model="torch.hub:load")
    assert not marker.exists()


# claims that a file's bytes do not cover


class Memory:
    """Pickles as a storage."""

    def __init__(self, numel=4, key="0", *view) -> None:
        self.pid = ("storage", torch.FloatStorage, key, "cpu", numel, *view)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Memory) else None


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensor(memory=None, offset=0, size=(4,), stride=(1,)) -> Call:
    arguments = (memory or Memory(), offset, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


VALUES = np.arange(4, dtype=np.float32).tobytes()


def archive(content=None, *, values=VALUES, more=(), compression=zipfile.ZIP_STORED) -> bytes:
    """A checkpoint written with Python's zipfile; `more` are further entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        pickle_ = content if isinstance(content, bytes) else pickled(content or {"a": tensor()})
        entries = [("net/data.pkl", pickle_), ("net/data/0", values), ("net/version", b"3\n")]
        for name, value in [*entries, *more]:
            file.writestr(name, value)
    return buffer.getvalue()


def patched(raw: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    at = raw.rindex(old) if last else raw.index(old)
    return raw[:at] + new + raw[at + len(old) :]


def resized(size: int) -> bytes:
    """The archive whose directory claims `size` bytes for data/0, in 64 bits if need be."""
    raw = archive()
    row = raw.rindex(b"PK\1\2", 0, raw.rindex(b"net/data/0"))
    wide = struct.pack("<2H2Q", 1, 16, size, size)
    narrow = struct.pack("<2I", 0xFFFFFFFF, 0xFFFFFFFF)
    head = raw[: row + 20] + narrow + raw[row + 28 : row + 30] + struct.pack("<H", len(wide))
    raw = head + raw[row + 32 : row + 56] + wide + raw[row + 56 :]
    directory = struct.unpack("<I", raw[-10:-6])[0] + len(wide)
    return raw[:-10] + struct.pack("<I", directory) + raw[-6:]


def legacy(numel: int, claimed: int) -> bytes:
    head = saved({}, **LEGACY)
    head = head[: head.index(b"\x80\x02}q\x00.")]
    content = {"a": tensor(Memory(numel, "0", None), size=(numel,))}
    return head + pickled(content) + pickled(["0"]) + struct.pack("<q", claimed) + VALUES


def copies() -> bytes:
    """A tuple that is pickled once and copied 100,000 times."""
    items = b"(" + b"K\0" * 10_000 + b"tq\1"
    return b"\x80\2](" + items + b"ctorch\nSize\nq\2" + b"h\2h\1\x85R" * 100_000 + b"e."


def overlapping() -> bytes:
    """An archive whose data/1 is inside data/0."""
    inner = struct.pack("<4s5H3I2H", b"PK\3\4", 20, *[0] * 7, 10, 0) + b"net/data/1"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("net/data.pkl", pickled({"a": 1}))
        file.writestr("net/data/0", inner)
        hidden = zipfile.ZipInfo("net/data/1")
        hidden.header_offset = file.getinfo("net/data/0").header_offset + 30 + 10
        hidden.CRC = hidden.file_size = hidden.compress_size = 0
        file.filelist.append(hidden)
    return buffer.getvalue()


HUGE = 10**12
# (what, why it is refused)
CLAIMS = {
    ("an entry of 10^12 bytes", "claims 1,000,000,000,000 bytes"): resized(HUGE),
    ("an entry of 2^63 bytes", "claims 9,223"): resized(2**63),
    ("storage of 10^12 elements", "claims 4,000,000,000,000 bytes"): archive(
        {"a": tensor(Memory(HUGE))}
    ),
    ("storage of less than nothing", "size or offset"): archive({"a": tensor(Memory(-4))}),
    ("storage of 4.0 elements", "size or offset"): archive({"a": tensor(Memory(4.0))}),
    ("tensor of 10^12 elements", "claims a tensor of 1000000 x"): archive(
        {"a": tensor(size=(10**6, 10**6), stride=(10**6, 1))}
    ),
    ("tensor beyond its storage", "claims a tensor of 2 x 2"): archive(
        {"a": tensor(size=(2, 2), stride=(3, 1))}
    ),
    ("offset beyond its storage", "claims a tensor of 4"): archive({"a": tensor(offset=1)}),
    ("expanded tensor", "claims a tensor"): archive({"a": tensor(size=(10**12,), stride=(0,))}),
    ("negative stride", "size or offset"): archive({"a": tensor(stride=(-1,))}),
    ("as many strides as not sizes", "damaged"): archive({"a": tensor(size=(2, 2))}),
    ("two sizes of a storage", "two sizes"): archive(
        {"a": tensor(), "b": tensor(Memory(2), size=(2,))}
    ),
    ("no such storage", "holds none"): archive({"a": tensor(Memory(key="../../x"))}),
    ("bytearray(10^12)", "builtins.bytearray"): archive({"a": Call(bytearray, HUGE)}),
    ("tensor without storage", "torch.FloatTensor"): archive({"a": Call(torch.FloatTensor, HUGE)}),
    ("untyped storage", "not callable"): archive({"a": Call(torch.UntypedStorage, HUGE)}),
    ("a billion copies", "copied objects"): archive(copies()),
    ("huge memo", "numbers more objects"): archive(b"\x80\x02}r\xff\xff\xff\xff."),
    ("huge string", "unicodestring4"): archive(b"\x80\x02X\xff\xff\xff\xffabc."),
    ("8-byte lengths", "bytearray8"): archive(b"\x80\x05\x96" + struct.pack("<q", HUGE) + b"."),
    ("items for a tensor", "item assignment"): archive(b"\x80\x02ctorch\nSize\n)RK\x00K\x01s."),
    ("legacy storage of 10^12 elements", "holds fewer"): legacy(HUGE, HUGE),
    ("legacy storage of another size", "holds fewer"): legacy(4, HUGE),
    ("compressed", "compressed"): archive(compression=zipfile.ZIP_DEFLATED),
    ("zip bomb", "compressed"): archive(values=bytes(10**7), compression=zipfile.ZIP_DEFLATED),
    ("path traversal", "unsafe name"): archive(more=[("net/../../x", b"")]),
    ("absolute name", "unsafe name"): archive(more=[("/net/x", b"")]),
    ("overlapping entries", "overlapping"): overlapping(),
    ("other folder", "several folders"): archive(more=[("other/data.pkl", b"")]),
    ("name twice", "two entries"): patched(
        archive(more=[("net/data/1", b"")]), b"net/data/1", b"net/data/0", last=True
    ).replace(b"net/data/1", b"net/data/0"),
    ("name twice in other case", "two entries"): archive(more=[("net/DATA.pkl", b"")]),
    ("other name inside", "not where its directory says"): patched(
        archive(), b"net/data.pkl", b"net/data.pkk"
    ),
    ("no content", "no data.pkl"): patched(archive(), b"net/data.pkl", b"net/data.pkk").replace(
        b"net/data.pkl", b"net/data.pkk"
    ),
    ("something before", "directory has the wrong size"): b"PK\3\4" + archive(),
    ("something after", "its end is missing"): archive() + b"x",
    ("wrong values", "CRC test"): patched(archive(), VALUES, VALUES[::-1]),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[0])
def test_claims_are_refused_before_torch_sees_them(tmp_path, monkeypatch, claim):
    path = tmp_path / "net.pt"
    path.write_bytes(CLAIMS[claim])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("reached torch"))
    with pytest.raises(CheckpointError, match=claim[1]) as error:
        read_file(path)
    assert_refused(error.value, 5)


def test_the_same_files_without_such_claims_load(tmp_path):
    path = tmp_path / "net.pt"
    legacy_file = legacy(4, 4)
    for raw in (archive(), resized(16), legacy_file, archive(more=[("net/data/1", b"x")])):
        path.write_bytes(raw)
        assert read_file(path)["a"].tolist() == [0, 1, 2, 3]


def test_numbers_of_entries_and_sizes_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    path.write_bytes(archive())
    for module, limit in (
        (archives, "ENTRY_LIMIT"),
        (archives, "PICKLE_LIMIT"),
        (storage, "FILE_LIMIT"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, 2)
            with pytest.raises(CheckpointError, match="more than"):
                read_file(path)
    path.write_bytes(archive({"a": tensor(), "b": OrderedDict(a=1)}))
    assert read_file(path)["b"] == {"a": 1}


def test_what_training_saves_is_not_refused(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for make in (torch.optim.SGD, torch.optim.Adam):
        optimizer = make(network.parameters(), lr=0.1)
        network(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        dtypes = [torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.complex64]
        newer = [torch.uint16, torch.float8_e4m3fn]  # than the legacy format
        shared = torch.arange(12.0).view(3, 4)
        content = {
            "state_dict": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "views": [shared, shared.T, shared[1:, 2:], shared[:0]],
            "random": torch.get_rng_state(),
            "plain": [None, True, -1, 2**70, 0.5, "é", b"bytes", (1, (2,)), {3}, torch.Size([4])],
            "dtype": torch.float32,
            "device": torch.device("cpu"),
        }
        for options in ({}, LEGACY):
            path = tmp_path / "net.pt"
            extra = [] if options else newer
            content["dtypes"] = [torch.zeros(3, dtype=dtype) for dtype in [*dtypes, *extra]]
            path.write_bytes(saved(content, **options))
            loaded = read_file(path)
            assert loaded["plain"] == content["plain"]
            assert torch.equal(loaded["views"][1], shared.T)
            assert torch.equal(loaded["random"], content["random"])
            assert loaded["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]


def test_every_allowed_name_is_one_that_torch_allows():
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    names = {f"{module}.{name}" for module, name in pickles._Census(b"").globals}
    assert names <= {name.replace("__builtin__", "builtins") for name in allowed}


# descriptions edited by hand

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
