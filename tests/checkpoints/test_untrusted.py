"""Files from elsewhere run no code, whoever reads them."""

import io
import os
import pickle
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
from crafted import LEGACY, Call, assert_refused, saved

from data import load_data
from data.errors import DataError
from model_compound_scaling.checkpoints import atomic_save
from model_compound_scaling.checkpoints.atomic_save import (
    read_file,
    read_generation,
    write_file,
)
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import (
    network_content,
    read_checkpoint,
)
from model_compound_scaling.checkpoints.recognition import network_spec
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.export.layer_masks import load_layer

pytestmark = pytest.mark.faults


class Getstate:
    """Pickles as an object whose state is set by a call."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __reduce__(self):
        return OrderedDict, (), {"hooks": self.inner}


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
    monkeypatch.setattr(atomic_save, "check", lambda *_, **__: None)
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
    write_file({**content, "network": {**content["network"], "model": "evil"}}, path)
    with pytest.raises(CheckpointError, match=r"network\.model"):
        read_checkpoint(path)
    content["network"] = {"model": "torch.hub:load", "num_classes": 10, "arguments": {"a": 1}}
    write_file(content, path)
    with pytest.raises(CheckpointError, match="arguments"):
        network_spec(read_checkpoint(path), model="torch.hub:load")
    assert not marker.exists()
