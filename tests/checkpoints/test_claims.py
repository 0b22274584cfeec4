"""Files from elsewhere take no more memory than their bytes account for."""

import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from crafted import (
    LEGACY,
    VALUES,
    Call,
    Memory,
    archive,
    assert_refused,
    copies,
    elsewhere,
    folder,
    legacy,
    overlapping,
    patched,
    resized,
    saved,
    tensor,
)

from model_compound_scaling.checkpoints import atomic_save
from model_compound_scaling.checkpoints.atomic_save import read_file
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.untrusted import pickle_claims, zip_structure

pytestmark = pytest.mark.faults

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
    ("needless instruction", "instruction POP"): archive(b"\x80\x02}00}."),
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
    ("64-bit directory elsewhere", "not where it should be"): elsewhere(),
    ("values in a folder", "marked as a folder"): archive(more=[(folder("net/data/1"), b"")]),
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
        (zip_structure, "ENTRY_LIMIT"),
        (zip_structure, "PICKLE_LIMIT"),
        (atomic_save, "FILE_LIMIT"),
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
    names = {f"{module}.{name}" for module, name in pickle_claims._Census(b"").globals}
    assert names <= {name.replace("__builtin__", "builtins") for name in allowed}
