"""Predictions of images whatever their names are, on any output."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from helpers import MICRONET, call, save_images, save_network, ternary_micronet

import run_scoring
from model_scoring.packed_file import read_any

LATIN = os.fsdecode(b"caf\xe9")  # what Python makes of a name that is not UTF-8
NAMES = [f"{LATIN}.png", "a\nb.png", "\x1b[31m.png", "日本.png"]
CLASSES = [LATIN, "new\nline", "\x1b[2J", *"defghij"]


@pytest.fixture
def named(tmp_path) -> tuple[Path, Path]:
    """A checkpoint and a folder with names as people do not give them."""
    data = {"mean": [0.5] * 3, "std": [0.2] * 3, "class_names": CLASSES}
    model = save_network(tmp_path / f"{LATIN}\n.pt", ternary_micronet(), MICRONET, **data)
    folder = save_images(tmp_path / LATIN, len(NAMES), 32)
    for file, name in zip(sorted(folder.iterdir()), NAMES, strict=True):
        file.rename(folder / name)
    return model, folder


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_name_takes_one_line(named, tmp_path, monkeypatch, encoding):
    model, folder = named
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
    packed = tmp_path / f"{LATIN}\x1b.ec2t"
    flags = ["--t-model", model, "--predict", folder, "--top", 10, "--export", packed]
    assert run_scoring.main([*map(str, flags), "--json", str(tmp_path / "j")]) == 0
    sys.stdout.flush()
    lines = stream.getvalue().decode(encoding).splitlines()
    name = {"utf-8": "日本", "ascii": r"\u65e5\u672c"}[encoding]
    shown = [rf"{tmp_path}/caf\xe9/{name}.png" for name in (r"\x1b[31m", r"a\nb", r"caf\xe9", name)]
    assert [line.split("  ")[0] for line in lines[-4:]] == shown
    for line in lines[-4:]:
        assert sorted(p.rsplit(" ", 2)[0] for p in line.split("  ")[1].split(", ")) == sorted(
            [r"caf\xe9", r"new\nline", r"\x1b[2J", *"defghij"]
        )
    assert rf"wrote {tmp_path}/caf\xe9\x1b.ec2t" in lines
    assert rf"from {tmp_path}/caf\xe9\n.pt, 3x32x32" in lines[0]
    assert not set("\x1b\r") & set("".join(lines))
    assert json.loads((tmp_path / "j").read_text())["checkpoint"] == str(model)
    assert read_any(packed).data["class_names"] == CLASSES


def test_errors_name_them_on_one_line(named, capsys):
    model, folder = named
    bad = folder / f"z{LATIN}\n\x1b.png"
    bad.write_bytes(b"no image")
    for flags in (["--predict", bad], ["--predict", f"{bad}?"], ["--eval", "--data-path", bad]):
        more = ["--dataset", "ImageFolder"] if "--eval" in flags else []
        code, _, err = call(run_scoring.main, capsys, "--t-model", model, *flags, *more)
        assert (code, err.count("\n")) == (4, 1)
        assert r"zcaf\xe9\n\x1b.png" in err and err[:-1].isprintable()
        assert r"\udce9" not in err


def test_other_classes_are_named_as_elsewhere(named, tmp_path, capsys):
    for name in [f"{LATIN}{letter}" for letter in "klmnopqrst"]:
        save_images(tmp_path / "val" / name, 1, 32)
    flags = ("--t-model", named[0], "--dataset", "ImageFolder", "--data-path", tmp_path, "--eval")
    code, _, err = call(run_scoring.main, capsys, *flags)
    assert code == 4 and r"'caf\xe9k', 'caf\xe9l'" in err and r"\udce9" not in err


def test_links_and_files_that_cannot_be_reached(named, tmp_path, capsys):
    model, folder = named
    (folder / "more").symlink_to(save_images(tmp_path / "more", 2, 32))
    (folder / "more" / "up").symlink_to(folder)
    code, out, _ = call(run_scoring.main, capsys, "--t-model", model, "--predict", folder)
    assert code == 0 and out.count("/more/0") == 2
    (folder / "zz.png").symlink_to("nowhere.png")
    for path in (folder, folder / "zz.png", "x" * 300, tmp_path / "a" / "b.png"):
        code, _, err = call(run_scoring.main, capsys, "--t-model", model, "--predict", path)
        assert (code, err.count("\n")) == (4, 1), err
