"""Pictures of every kind of values become the same 8 bits, or are refused by name; links are
followed as torchvision follows them."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import save_images, save_tree
from PIL import Image
from torchvision.datasets import ImageFolder

from data import load_data
from data.errors import DataError, printable
from data.image_files import images_under, list_tree, read_image
from model_scoring.inference.prediction import image_paths

GREY = np.random.default_rng(0).integers(0, 256, (9, 8)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 8, 3)).astype(np.uint8)
ALPHA = np.full((9, 8, 1), 128, np.uint8)


def tiff(path: Path, values: np.ndarray, *, photometric=1, sample_format=1, bits=0) -> None:
    """A TIFF file as its standard says, with tags that Pillow does not write."""
    height, width = GREY.shape
    bits, data = bits or 8 * values.itemsize, values.tobytes()
    numbers = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 134),
               (277, 1), (278, height), (279, len(data)), (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers)
    content = struct.pack("<2sHIH", b"II", 42, 8, len(numbers)) + entries + bytes(4)
    assert len(content) == 134
    path.write_bytes(content + data)


def png16(path: Path, values: np.ndarray, colour_type: int, transparent: bytes = b"") -> None:
    """A PNG file of 16 bits, which Pillow writes of grey only. values: (H, W, channels) of 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2") * 257)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    more = chunk(b"tRNS", transparent) if transparent else b""
    content = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))


def packed_12_bits(values: np.ndarray) -> np.ndarray:
    """Two values in three bytes, the first one's high bits first."""
    a, b = values[:, ::2], values[:, 1::2]
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8)


SIXTEEN, SHARE = GREY.astype("<u2") * 257, GREY.astype("<f4") / 255
# how a file of the grey picture is written, by its name
GREY_FILES = {
    "8.png": lambda p: Image.fromarray(GREY).save(p),
    "16.png": lambda p: Image.fromarray(SIXTEEN).save(p),
    "16 shifted.png": lambda p: Image.fromarray(GREY.astype(np.uint16) << 8).save(p),
    "16 transparent.png": lambda p: png16(p, GREY[..., None], 0, b"\1\1"),
    "LA16.png": lambda p: png16(p, np.dstack([GREY, ALPHA]), 4),
    "LA.png": lambda p: Image.fromarray(np.dstack([GREY, ALPHA])).save(p),
    "transparent.png": lambda p: Image.fromarray(GREY).save(p, transparency=3),
    "palette.png": lambda p: Image.fromarray(GREY).convert("P").save(p, transparency=bytes(256)),
    "palette.gif": lambda p: Image.fromarray(GREY).convert("P").save(p, transparency=3),
    "16.tif": lambda p: Image.fromarray(SIXTEEN).save(p),
    "16 white is 0.tif": lambda p: tiff(p, 65535 - SIXTEEN, photometric=0),
    "8 white is 0.tif": lambda p: tiff(p, 255 - GREY, photometric=0),
    "12.tif": lambda p: tiff(p, packed_12_bits(GREY.astype(int) * 4095 // 255), bits=12),
    "float.tif": lambda p: Image.fromarray(SHARE).save(p),
    "float white is 0.tif": lambda p: tiff(p, 1 - SHARE, photometric=0, sample_format=3),
    "16.pgm": lambda p: p.write_bytes(b"P5 8 9 65535\n" + SIXTEEN.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_the_same_picture_is_the_same_pixels(tmp_path, name):
    GREY_FILES[name](tmp_path / name)
    pixels = np.asarray(read_image(tmp_path / name))
    difference = np.abs(pixels.astype(int) - GREY[..., None]).max()
    assert difference <= (name == "12.tif")  # 12 bits do not hold 8 exactly


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("8.png", lambda p: Image.fromarray(COLOUR).save(p)),
        ("16.png", lambda p: png16(p, COLOUR, 2)),
        ("RGBA16.png", lambda p: png16(p, np.dstack([COLOUR, ALPHA]), 6)),
        ("RGBA.png", lambda p: Image.fromarray(np.dstack([COLOUR, ALPHA])).save(p)),
        ("CMYK.tif", lambda p: Image.fromarray(COLOUR).convert("CMYK").save(p)),
        ("turned.png", lambda p: Image.fromarray(COLOUR).save(p, exif=orientation(6))),
        ("16.ppm", lambda p: p.write_bytes(b"P6 8 9 65535\n" + COLOUR.repeat(2, 2).tobytes())),
    ],
)
def test_the_same_colours_are_the_same_pixels(tmp_path, name, write):
    write(tmp_path / name)
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), COLOUR)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_lossy_pictures_are_close(tmp_path):
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    picture = Image.fromarray(np.dstack([ramp, ramp.T, 255 - ramp]))
    for name, mode in (("rgb.jpg", "RGB"), ("cmyk.jpg", "CMYK"), ("ycc.tif", "YCbCr")):
        picture.convert(mode).save(tmp_path / name)
        pixels = np.asarray(read_image(tmp_path / name)).astype(int)
        assert np.abs(pixels - np.asarray(picture)).mean() < 4, name


NO_RANGE = {
    "int.tif": lambda p: Image.fromarray(GREY).convert("I").save(p),
    "unsigned.tif": lambda p: tiff(p, GREY.astype("<u4")),
    "signed 16.tif": lambda p: tiff(p, GREY.astype("<i2"), sample_format=2),
    "signed 8.tif": lambda p: tiff(p, GREY, sample_format=2),
    "float 255.tif": lambda p: Image.fromarray(GREY.astype(np.float32)).save(p),
    "float below.tif": lambda p: Image.fromarray(SHARE - 0.5).save(p),
    "float nan.tif": lambda p: Image.fromarray(np.where(GREY > 9, SHARE, np.nan)).save(p),
}


@pytest.mark.parametrize("name", NO_RANGE)
@pytest.mark.parametrize("cache", [0, 1])
def test_values_without_a_range_are_refused_by_name(tmp_path, name, cache):
    for split in ("train", "val"):
        save_images(tmp_path / split / "a", 3)
    NO_RANGE[name](tmp_path / "val" / "a" / name)
    with pytest.raises(DataError, match=rf"^cannot read image .*{name}: [^\n]+$"):
        data = load_data("ImageFolder", data_path=tmp_path, image_size=16, batch_size=2, workers=0,
                         cache_gb=cache)  # fmt: skip
        list(data.val.epoch(0))


# Links


def same_as_torchvision(root: Path) -> int:
    """How many images there are, which torchvision finds as well, in the same classes."""
    tree = list_tree(root, "val")
    expected = ImageFolder(root / "val")
    found = zip(map(os.fsdecode, tree.paths), tree.labels.tolist(), strict=True)
    assert sorted(found) == sorted(expected.samples)
    assert tree.class_names == expected.classes
    assert sorted(map(str, image_paths(root / "val"))) == sorted(p for p, _ in expected.samples)
    return len(tree.paths)


def test_links_are_followed_as_torchvision_does(tmp_path):
    save_images(tmp_path / "elsewhere" / "more", 4)
    save_images(tmp_path / "elsewhere" / "bird", 2)
    save_tree(tmp_path, ("cat", "dog"), val=3)
    val = tmp_path / "val"
    (val / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (val / "cat" / "twice").symlink_to("linked")
    (val / "dog" / "cats").symlink_to("../cat")
    (val / "bird").symlink_to("../elsewhere/bird")
    (val / "dog" / "again.png").symlink_to("00.png")
    (val / "dog" / "notes.txt").write_text("no image")
    save_images(val / "dog" / "deep" / ".hidden", 2)
    assert same_as_torchvision(tmp_path) == (3 + 4 + 4) + (3 + 11 + 1 + 2) + 2


@pytest.mark.parametrize("target", [".", "..", "../..", "../cat", "deep", "/"])
def test_links_in_a_circle_end(tmp_path, target):
    """Through one link or several, and from other places than where the walk begins."""
    save_tree(tmp_path, ("cat", "dog"), val=3)
    val = tmp_path / "val"
    save_images(val / "cat" / "deep", 2)
    (val / "cat" / "deep" / "up").symlink_to(target if target == "/" else f"../{target}")
    (val / "cat" / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"^cannot follow the link .*loop: [^\n]+$"):
        list_tree(tmp_path, "val")
    (val / "cat" / "loop").unlink()
    assert len(images_under(val / "cat")) == 5
    (val / "dog" / "other").symlink_to("../cat/deep/back")
    (val / "cat" / "deep" / "back").symlink_to("../../dog")
    assert len(images_under(val / "cat")) == 5 + 3


def test_links_to_nowhere_are_named(tmp_path):
    save_tree(tmp_path, ("cat", "dog"), val=3)
    (tmp_path / "val" / ".#lock").symlink_to("nowhere")
    (tmp_path / "val" / "cat" / ".#lock").symlink_to("nowhere")
    (tmp_path / "val" / "cat" / "z.png").symlink_to("nowhere.png")
    data = load_data("ImageFolder", data_path=tmp_path, image_size=80, workers=0, splits=("val",))
    with pytest.raises(DataError, match=r"^cannot read image .*z.png: [^\n]+$"):
        list(data.val.epoch(0))
    for place in ("cat/more", "bird"):
        link = tmp_path / "val" / place
        link.symlink_to("nowhere")
        with pytest.raises(DataError, match=f"^cannot follow the link {link}: No such file"):
            list_tree(tmp_path, "val")
        link.unlink()


@pytest.mark.parametrize("place", ["val", "val/cat", "val/cat/deep"])
def test_folders_that_may_not_be_read_are_named(tmp_path, place, monkeypatch):
    save_tree(tmp_path, ("cat", "dog"), val=3)
    save_images(tmp_path / "val/cat/deep", 2)
    scandir = os.scandir

    def refuse(folder):  # whatever permissions say, root may read it
        if Path(folder) == tmp_path / place:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for action in (lambda: list_tree(tmp_path, "val"), lambda: image_paths(tmp_path / "val")):
        with pytest.raises(DataError, match=f"^cannot read folder .*{place}: Permission denied$"):
            action()


# Names


def test_names_are_shown_on_one_line():
    shown = {
        "plain é 日本.png": "plain é 日本.png",
        "a\nb\r\tc": r"a\nb\r\tc",
        "\x1b[31mred\x9b": r"\x1b[31mred\x9b",
        os.fsdecode(b"caf\xe9"): r"caf\xe9",
        repr(os.fsdecode(b"caf\xe9\n\xff\x1b")): r"'caf\xe9\n\xff\x1b'",
        "right\u202eto left\u2028": r"right\u202eto left\u2028",
        "narrow\u202fspace": "narrow\u202fspace",
    }
    assert {name: printable(name) for name in shown} == shown


def test_names_that_are_not_text_are_read_and_named(tmp_path, capfd):
    folder = save_images(tmp_path / "val" / os.fsdecode(b"\xff"), 2)
    bad = folder / os.fsdecode(b"\xe9\n.png")
    bad.write_bytes(b"no image")
    data = load_data("ImageFolder", data_path=tmp_path, image_size=80, workers=1,
                     splits=("val",), skip_bad_images=1)  # fmt: skip
    assert sum(len(labels) for _, labels in data.val.epoch(0)) == 2
    assert data.class_names == [os.fsdecode(b"\xff")]
    err = capfd.readouterr().err
    assert r"/\xff/\xe9\n.png: " in err and err.count("\n") == 1


def test_cores_are_those_of_the_process(monkeypatch):
    """Not those of the machine, and shared by its processes; a number asked for is as it is."""
    from data.batches import DataOptions
    from data.file_loader import worker_count

    for cores, sharing, expected in ((1, 1, 1), (2, 1, 2), (64, 1, 4), (8, 4, 2), (2, 8, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert worker_count(DataOptions(sharing=sharing)) == expected
        for asked in (0, 1, 9):
            assert worker_count(DataOptions(sharing=sharing, workers=asked)) == asked


def test_more_workers_than_cores_need_no_warning(tmp_path, recwarn, monkeypatch):
    save_tree(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    expected = None
    for workers in (0, None, 3):
        data = load_data("ImageFolder", data_path=tmp_path, image_size=80, batch_size=8,
                         workers=workers)  # fmt: skip
        for loader in (data.train, data.val):
            images = torch.cat([x for x, _ in loader.epoch(0)])
        expected = images if expected is None else expected
        assert images.equal(expected)
    assert not [w for w in recwarn if "worker" in str(w.message)]
