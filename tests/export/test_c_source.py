"""C files: PyTorch's logits, whatever the compiler, its warnings and sanitizers; no broken file."""

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from c_networks import RandomNetwork, source_of
from helpers import MICRONET, call, few_values, randomize, save_network, ternary_micronet
from torch import nn

import run_scoring
from data.errors import UserError
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.dead_channels import thin
from model_scoring.export.c_source import compiled, header_path, identifier, largest_deviation
from model_scoring.export.c_source.compiling import build as compile_program
from model_scoring.export.c_source.source import comment, quoted
from model_scoring.export.latency import interleaved

HAS_COMPILER = shutil.which("cc") is not None
pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
QUICK = ("-std=gnu11", "-O1", "-march=native")
STRICT = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
SHAPE = (3, 32, 32)
MOST = 1e-4  # of the largest logit


def deviation(network: nn.Module, shape, folder, *flags: str, images: int = 2) -> float:
    library = compiled(source_of(network, shape), folder, *(flags or QUICK))
    return largest_deviation(network, library, images)


def by_program(network: nn.Module, shape, folder, *flags: str, run=(), images: int = 2) -> float:
    """The same of a program that reads images and prints logits."""
    source = source_of(network, shape)
    path = compile_program(source, folder, *flags, "-DNET_MAIN", output="net")
    batch = torch.randn(images, *shape, generator=torch.Generator().manual_seed(1))
    done = subprocess.run([*run, path], input=batch.numpy().tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = np.array([line.split() for line in done.stdout.decode().splitlines()], float)
    with torch.no_grad():  # one by one, as in C
        expected = torch.cat([network(image[None]) for image in batch]).numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_a_cut_image_is_an_error(tmp_path):
    network = build(NetworkSpec("lenet-5", 10)).eval()
    path = compile_program(source_of(network, (1, 28, 28)), tmp_path, "-DNET_MAIN", output="net")
    for images, code in ((0, 0), (1, 0), (1.5, 1)):
        found = subprocess.run([path], input=bytes(int(images * 4 * 784)), capture_output=True)
        assert found.returncode == code and found.stdout.count(b"\n") == int(images)
        assert found.stderr == (b"the last image has 1568 bytes of 3136\n" if code else b"")


def seeds(quick: int, all_of: int) -> list:
    return [s if s < quick else pytest.param(s, marks=pytest.mark.slow) for s in range(all_of)]


@pytest.mark.parametrize("first", seeds(1, 8))
def test_random_networks_are_strict_c_and_sanitized(first, tmp_path, full):
    for seed in range(first, 40 if full else first + 1, 8):
        shape = (3, 11 + 5 * (seed % 5), 16) if seed % 2 else (2, 16, 8 * (1 + seed % 4))
        network = RandomNetwork(seed, shape, 14)
        vector = f"-DNET_VECTOR={2 ** (1 + seed % 6)}"
        assert by_program(network, shape, tmp_path, *STRICT, *SANITIZED, vector) <= MOST, seed


def test_a_ternary_network_by_default_flags_and_in_plain_loops(tmp_path):
    network = ternary_micronet()
    assert deviation(network, SHAPE, tmp_path) <= MOST
    assert by_program(network, SHAPE, tmp_path, *STRICT, "-DNET_SCALAR") <= MOST


SMALL_MICRONET = {"blocks": [1] * 7, "channels": [16] * 7, "stem": 16, "head": 64}
NETWORKS = [
    (NetworkSpec("image_micronet", 10, SMALL_MICRONET), 48),
    *((NetworkSpec(name, 10), 32) for name in ("resnet20", "resnet32", "resnet44", "resnet56")),
    *((NetworkSpec(name, 10), 64) for name in ("resnet18", "resnet34", "resnet50")),
    *((NetworkSpec(f"efficientnet-b{i}", 10, {"origin": "tf"}), 64) for i in range(8)),
    *((NetworkSpec(f"efficientnet-lite{i}", 10), 61) for i in range(5)),
    (NetworkSpec("lenet-5", 10), 28),
    *((NetworkSpec(f"torchvision:{name}", 10), 64) for name in (
        *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
        *("densenet121", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"),
        *("resnext50_32x4d", "efficientnet_v2_s", "regnet_x_400mf", "wide_resnet50_2"))),
    (NetworkSpec("torchvision:inception_v3", 10), 80),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(("spec", "size"), NETWORKS, ids=lambda value: getattr(value, "model", ""))
def test_networks_of_the_table_and_of_torchvision(spec, size, tmp_path):
    torch.manual_seed(0)
    network = randomize(build(spec))
    shape = (table_row(spec.model).channels, size, size)
    assert deviation(network, shape, tmp_path, "-O1", images=8) <= MOST


class TwoOrders(nn.Module):
    """What is concatenated has more readers, of other pixels, than what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.pair = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, (1, 2))
        self.joined = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.relu(x), torch.relu(self.one(x))
        both = torch.cat([a, b], 1), torch.cat([b, a], 1)
        return torch.cat([self.pair(a).flatten(1), *(self.joined(x).flatten(1) for x in both)], 1)


class CutTwice(nn.Module):
    """The same rows for two readers, one of which takes columns of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        rows, again = x[:, :, ::2], x[:, :, ::2]
        parts = self.conv(again[..., ::2]), self.conv(rows)
        return torch.cat([part.flatten(1) for part in parts], 1)


class CutInTwoForms(nn.Module):
    """Every other row of channels, and of groups of them, which change places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.joined = nn.Conv2d(2, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        groups = x.unflatten(1, (2, 2))[:, :, :, ::2].transpose(1, 2).flatten(1, 2)
        return self.joined(torch.cat([x[:, :, ::2], groups], 1)).flatten(1)


@pytest.mark.parametrize("network", [TwoOrders, CutTwice, CutInTwoForms])
def test_what_several_layers_read(network, tmp_path):
    network = randomize(network())
    for layer in network.children():
        few_values(layer, (-0.5, 0.0, 1.0), part="")
    assert deviation(network, (2, 8, 16), tmp_path) <= MOST


def test_filters_that_meet_no_pixel_are_named():
    network = nn.Sequential(nn.Conv2d(1, 2, 2, padding=1, dilation=2), nn.Flatten()).eval()
    with pytest.raises(UserError, match="never meet a pixel"):
        source_of(network, (1, 1, 1))


def test_bytes_of_lists():
    """At most 2.2 for each nonzero of ternary layers, and 4 for each other value."""
    network = randomize(few_values(build(NetworkSpec("resnet20", 10)), (-0.1, 0, 0, 0, 0.2)))
    thinned = thin(network, SHAPE).network
    ternary = [m.weight for n, m in thinned.named_modules() if "conv" in n and n != "conv1"]
    nonzeros = sum(int(w.count_nonzero()) for w in ternary)
    others = sum(p.numel() for p in thinned.state_dict().values()) - sum(map(torch.numel, ternary))
    assert source_of(thinned, SHAPE).weight_bytes <= 2.2 * nonzeros + 4 * others


def test_two_threads_with_two_arenas(tmp_path):
    network = ternary_micronet()
    library = compiled(source_of(network, SHAPE), tmp_path, *QUICK)
    batches = np.random.default_rng(0).standard_normal((2, 12, *SHAPE)).astype(np.float32)
    expected, found = [library.run(batch) for batch in batches], [None, None]

    def work(i: int) -> None:
        found[i] = library.run(batches[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    dirty = ctypes.create_string_buffer(b"\xff" * library.source.arena_bytes)
    logits = np.empty(10, np.float32)
    where = [ctypes.c_void_p(a.ctypes.data) for a in (batches[0, 0], logits)]
    assert library.library.net_run(*where, dirty) == 0  # whatever the arena holds
    assert np.array_equal(logits, expected[0][0])
    assert library.library.net_run(*where, None) == 1


AARCH64 = pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs gcc-aarch64-linux-gnu and qemu-user",
)


@pytest.mark.slow
@AARCH64
def test_aarch64(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "aarch64-linux-gnu-gcc")
    network, flags = ternary_micronet(), ("-std=gnu11", "-O2", "-static")
    assert by_program(network, SHAPE, tmp_path, *flags, run=["qemu-aarch64"]) <= MOST


NAMES = (
    'a "quoted" name',
    "line\nbreak",
    "??/",
    "??=??'",
    "\\",
    "é日本",
    "x" * 500,
    "*/",
    "1\x002",
)


def test_class_names_cannot_break_the_file(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, len(NAMES), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    statistics = {"mean": (0.5, 0.25, 0.125), "std": (0.5, 0.25, 2.0)}
    source = source_of(network.eval(), (3, 2, 2), class_names=NAMES, **statistics)
    library = compiled(source, tmp_path, *STRICT, "-trigraphs", "-Wno-trigraphs")
    names = (ctypes.c_char_p * len(NAMES)).in_dll(library.library, "net_class_names")
    assert [n.decode() for n in names] == [n.partition("\0")[0] for n in NAMES]
    rgb = bytes(range(0, 240, 20))
    image = np.empty((3, 2, 2), np.float32)
    library.library.net_prepare(rgb, ctypes.c_void_p(image.ctypes.data))
    pixels = torch.tensor(list(rgb)).reshape(2, 2, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(statistics[k])[:, None, None] for k in ("mean", "std"))
    assert torch.allclose(torch.from_numpy(image), (pixels - mean) / std, atol=1e-6)


def test_comments_and_names():
    text = comment(("*/ /* ??/", "\n#error", "é"))
    assert text.count("*/") == text.count("/*") == 1
    assert "??" not in text
    assert quoted("?1") == r'"\0771"'
    assert [identifier(s) for s in ("net", "Net-1", "1", "é")] == ["net", "net_1", "net_1", "_"]
    with pytest.raises(UserError, match=r"ends in \.c"):
        header_path(run_scoring.STAGE / "net.cc")


@pytest.fixture
def checkpoint(tmp_path):
    names = [f"class {i}" for i in range(10)]
    return save_network(tmp_path / "t.pt", ternary_micronet(), MICRONET, class_names=names)


def test_the_script_writes_compares_and_says_so(checkpoint, tmp_path, capsys):
    path = tmp_path / "Net-2.c"
    code, out, err = call(run_scoring.main, capsys, "--t-model", checkpoint, "--c-source", path)
    assert (code, err) == (0, "")
    assert "logits differ from PyTorch's by" in out
    text, header = path.read_text(), path.with_suffix(".h").read_text()
    assert header in text
    assert "int net_2_run(const float *image, float *logits, void *arena);" in header
    assert "class 9" in text


@pytest.mark.parametrize(
    ("compiler", "code", "said"),
    [
        ("no-such-compiler", 0, "not compiled and compared with PyTorch"),
        ("cc '", 0, "not compiled and compared with PyTorch: CC: No closing quotation"),
        ("sh -c 'echo boom >&2; echo more >&2; exit 1'", 2, "fails: boom"),
    ],
)
def test_compilers(checkpoint, tmp_path, capsys, monkeypatch, compiler, code, said):
    monkeypatch.setenv("CC", compiler)
    path = tmp_path / "net.c"
    found, out, err = call(run_scoring.main, capsys, "--t-model", checkpoint, "--c-source", path)
    assert found == code
    assert said in out + err
    assert path.exists() == (code == 0)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["net.c", "--json", "net.h"], "need different files"),
        (["net.c", "--csv", "net.c"], "need different files"),
        (["net.cpp"], "ends in .c"),
    ],
)
def test_output_paths(tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(run_scoring.main, capsys, "--t-model", "x", "--c-source", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not list(tmp_path.iterdir())


def test_latency_is_measured_in_turn(checkpoint, tmp_path, capsys, monkeypatch):
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    flags = ("--t-model", checkpoint, "--latency", "--json", report, "--report", page)
    code, out, _ = call(run_scoring.main, capsys, *flags)
    assert code == 0
    found = json.loads(report.read_text())["latency"]
    assert all(found[f"{part}_bytes"] > 1000 for part in ("code", "weight", "arena"))
    names = list(found["milliseconds"])
    assert names[0].startswith("PyTorch") and names[-1] == "C" and len(names) > 1
    for name, times in found["milliseconds"].items():
        assert 0 < times["minimum"] <= times["lower"] <= times["median"] <= times["upper"]
        assert f"\n{name} " in out and f">{name}<" in page.read_text()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = call(run_scoring.main, capsys, "--t-model", checkpoint, "--latency")
    assert code == 0
    assert "onnxruntime: not installed (pip install -r requirements-export.txt)" in out


def test_latency_needs_a_compiler(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    flags = ("--t-model", checkpoint, "--latency", "--json", tmp_path / "report.json")
    code, _, err = call(run_scoring.main, capsys, *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert "no C compiler 'no-such-compiler': install one or set CC" in err
    assert not (tmp_path / "report.json").exists()


def test_who_takes_turns_is_called_alike():
    called = []
    calls = {name: partial(called.append, name) for name in "abc"}
    times = interleaved(calls, runs=20)
    assert [len(column) for column in times.values()] == [20] * 3
    turns = [called[i : i + 3] for i in range(0, len(called), 3)]
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert len({tuple(turn) for turn in turns[1:]}) > 3  # no order that a rhythm could favour


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).sort().values


def test_an_operation_without_a_kernel_is_named():
    with pytest.raises(UserError, match="no kernel for sort"):
        source_of(Sorted(), SHAPE)
    with pytest.raises(UserError, match=r"GiB of memory.*--image-size"):
        huge = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        source_of(huge.eval(), (3, 2048, 2048))
