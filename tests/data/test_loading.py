"""The dataset table, readers and loaders."""

import gzip
import hashlib
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import save_images, unpack
from PIL import Image
from torchvision.transforms import v2

from data import DATASETS, DataOptions, load_data, sources
from data.batches import CachedLoader, Part, evaluation_batch
from data.datasets import CIFAR_STATS, IMAGENET_STATS
from data.errors import DataError, UserError
from data.file_loader import FileLoader
from data.image_files import eval_transform, read_image
from data.shapes import make_shapes

SHAPES_SHA256 = {
    "train": "67bc56166ac8806f4c938a4bfb2185ea85804fa4db05c141a61a6965968b3f02",
    "val": "8311bce25b09b6793acd8ee03b030eed505eb17effb2cc1e0b827163974a49ff",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """train/ and val/ with two classes; 17 training images, 6 for validation."""
    root = tmp_path_factory.mktemp("tree")
    for folder, count in {"train/cat": 8, "train/dog": 9, "val/cat": 3, "val/dog": 3}.items():
        save_images(root / folder, count, 40, vary=True)
    return root


def load_folder(path: Path, image_size: int = 72, **options):
    """An image folder, streamed (72 pixels) unless told otherwise."""
    options = {"batch_size": 4, "workers": 0, **options}
    return load_data("ImageFolder", data_path=path, image_size=image_size, **options)


def epoch(loader, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    data = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, end: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
        write_idx(
            folder / f"{prefix}-labels-idx1-ubyte{end}", np.arange(count, dtype=np.uint8) % 10
        )


# The table


@pytest.mark.parametrize("row", DATASETS.values(), ids=DATASETS)
def test_rows_are_complete(row):
    mean, std = row.stats
    assert len(mean) == len(std) == row.channels
    assert all(0 < m < 1 for m in mean) and all(0 < s < 1 for s in std)
    assert (row.classes is None) == (row.image_size is None) == (row.name == "ImageFolder")


def test_the_table_has_the_documented_rows():
    assert {n: (r.classes, r.channels, r.image_size) for n, r in DATASETS.items()} == {
        "CIFAR100": (100, 3, 32),
        "CIFAR10": (10, 3, 32),
        "MNIST": (10, 1, 28),
        "FashionMNIST": (10, 1, 28),
        "ImageNet": (1000, 3, 224),
        "ImageFolder": (None, 3, None),
        "Shapes": (10, 3, 32),
    }


# Shapes


def test_shapes_are_always_the_same():
    for split, expected in SHAPES_SHA256.items():
        images, labels = make_shapes(split)
        digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        assert digest == expected


def test_shapes_are_balanced_and_measured():
    data = load_data("shapes")
    assert (data.classes, data.channels, data.image_size) == (10, 3, 32)
    assert data.train.labels.bincount().tolist() == [1000] * 10
    assert data.val.labels.bincount().tolist() == [200] * 10
    pixels = data.train.images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=1e-3)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=1e-3)


def test_shapes_do_not_depend_on_the_seed():
    images = [load_data("Shapes", seed=s, splits=("val",)).val.images for s in (0, 1)]
    assert images[0].equal(images[1])


# Cached sets


def test_batches_have_the_promised_form():
    data = load_data("Shapes", batch_size=96)
    images, labels = next(iter(data.train.epoch(0)))
    assert images.shape == (96, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (96,) and labels.dtype == torch.int64
    assert len(data.val) == 4 and data.val.samples == 2000 and data.train.samples == 10_000


def test_validation_is_complete_in_order_and_untouched():
    data = load_data("Shapes", splits=("val",))
    images, labels = epoch(data.val)
    assert data.train is None
    assert labels.equal(data.val.labels)
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    assert torch.allclose(images * std + mean, data.val.images / 255, atol=1e-6)


def test_last_batch_of_one_is_left_out_of_training_only():
    sizes = {
        b: [len(y) for _, y in load_data("Shapes", augment="none", batch_size=b).train.epoch(0)]
        for b in (1111, 3333, 4000)
    }
    assert sizes == {1111: [1111] * 9, 3333: [3333] * 3, 4000: [4000, 4000, 2000]}
    assert len(load_data("Shapes", batch_size=3333).train) == 3
    assert len(load_data("Shapes", val_batch_size=1999).val) == 2


def test_how_many_images_are_evaluated_at_once():
    """Few of large ones on a CPU; small ones, and on a GPU, as many as ever."""
    sizes = {32: (512, 512), 224: (20, 512), 600: (2, 93), 2000: (1, 8)}
    for size, expected in sizes.items():
        found = evaluation_batch(size, "cpu"), evaluation_batch(size, torch.device("cuda", 1))
        assert found == expected
        assert evaluation_batch(size, "cpu", 3) == 3 * expected[0]  # a share for each process
    assert [len(load_data("Shapes", image_size=s, splits=("val",)).val) for s in (32, 64)] == [4, 8]


def test_cached_images_do_not_depend_on_the_batch_size(tree):
    """Every image of the same epoch is the same to the bit, one at a time or all at once."""
    loaders = [load_folder(tree, 32, batch_size=b).train for b in (1, 5, 17)]
    results = [epoch(loader, 3) for loader in loaders]
    for images, labels in results[1:]:
        assert images.equal(results[0][0]) and labels.equal(results[0][1])
    assert not epoch(loaders[0], 4)[0].equal(results[0][0])


def test_training_leaves_the_global_generator_alone(tree):
    state = torch.random.get_rng_state()
    for size in (32, 72):
        epoch(load_folder(tree, size).train)
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("augment", "lowest", "highest"),
    [("none", 0, 0.001), ("flip-crop", 0.05, 0.2), ("default", 0.2, 0.4)],
)
def test_augment_chooses_the_recipe(augment, lowest, highest):
    """Crops leave a zero border (13 % on average), cutout a hole of up to a quarter."""
    data = load_data("Shapes", augment=augment, normalize="none", splits=("train",))
    images, _ = next(iter(data.train.epoch(0)))
    hidden = (images == 0).all(1).float().mean().item()
    assert lowest <= hidden <= highest


# Conversions


def test_normalize_choices():
    assert load_data("Shapes", normalize="imagenet").mean == IMAGENET_STATS[0]
    none = load_data("Shapes", normalize="none", splits=("val",))
    assert (none.mean, none.std) == ((0.0,) * 3, (1.0,) * 3)
    assert epoch(none.val)[0].amax() <= 1
    pair = load_data("Shapes", normalize=([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    assert (pair.mean, pair.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_channels_are_converted(tmp_path):
    write_mnist(tmp_path)
    grey = load_data("MNIST", data_path=tmp_path, batch_size=8)
    colour = load_data("MNIST", data_path=tmp_path, batch_size=8, channels=3)
    assert (grey.channels, colour.channels, colour.mean) == (1, 3, (0.1307,) * 3)
    assert epoch(colour.val)[0].equal(epoch(grey.val)[0].expand(-1, 3, -1, -1))
    shapes = load_data("Shapes", channels=1, splits=("val",))
    assert shapes.channels == len(shapes.mean) == 1
    assert abs(epoch(shapes.val)[0].mean()) < 0.05


def test_small_sets_are_resized(tmp_path):
    write_mnist(tmp_path)
    data = load_data("MNIST", data_path=tmp_path, image_size=32, batch_size=8)
    assert data.image_size == 32 and data.val.images.shape == (10, 1, 32, 32)


# CIFAR and MNIST files


def test_cifar_files_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)  # MD5 sums
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3072)
    batch = {"data": pixels, "fine_labels": [3, 99, 0, 3]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    data = load_data("cifar100", data_path=tmp_path, batch_size=2)
    assert (data.name, data.classes, data.class_names) == ("CIFAR100", 100, names)
    assert data.val.images.equal(torch.from_numpy(pixels).view(4, 3, 32, 32))
    assert data.train.labels.tolist() == [3, 99, 0, 3]


@pytest.mark.parametrize(("folder", "end"), [(".", ".gz"), ("MNIST/raw", ""), ("MNIST/raw", ".gz")])
def test_idx_files_are_found(tmp_path, folder, end):
    write_mnist(tmp_path / folder, end)
    data = load_data("mnist", data_path=tmp_path, batch_size=10)
    assert (data.name, data.train.samples, data.val.samples) == ("MNIST", 30, 10)
    assert data.val.labels.tolist() == list(range(10))


def test_real_fashion_mnist():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    data = load_data("FashionMNIST", data_path=folder, splits=("val",))
    assert data.val.labels.bincount().tolist() == [1000] * 10
    assert data.class_names[9] == "Ankle boot"
    assert abs(epoch(data.val)[0].mean()) < 0.02


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: gzip.compress(b"\0\0\x08\3abc")],
    ids=["truncated", "not gzip", "not idx"],
)
def test_damaged_idx_file_is_named(tmp_path, damage):
    write_mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"cannot read {file}: [^\n]+$"):
        load_data("MNIST", data_path=tmp_path, batch_size=8)


def test_missing_files_name_the_flag(tmp_path):
    with pytest.raises(DataError, match=r"--data-path: expected .*train-images-idx3-ubyte"):
        load_data("FashionMNIST", data_path=tmp_path)
    with pytest.raises(DataError, match=r"--data-path: .*cifar-10-batches-py"):
        load_data("CIFAR10", data_path=tmp_path)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR100"])
def test_failed_download_is_one_quiet_line(name, monkeypatch, capfd, tmp_path):
    def no_network(*args, **kwargs):
        print("Downloading")
        raise OSError("<urlopen error\nno route to host>")

    monkeypatch.setattr(sources, "DOWNLOADS", tmp_path)
    monkeypatch.setattr(getattr(torchvision.datasets, name), "__init__", no_network)
    with pytest.raises(DataError, match=rf"^cannot download {name} .*no route.*--data-path$"):
        load_data(name)
    assert capfd.readouterr() == ("", "")


# Image folders


def test_image_folder_small_and_large(tree):
    for size, stats in ((32, CIFAR_STATS), (72, IMAGENET_STATS)):
        data = load_folder(tree, size)
        images, labels = epoch(data.val)
        assert data.class_names == ["cat", "dog"] and data.classes == 2
        assert images.shape == (6, 3, size, size) and labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert (data.mean, data.std) == stats
        assert sorted(epoch(data.train)[1].tolist()) in ([0] * 8 + [1] * 8, [0] * 7 + [1] * 9)


def test_streaming_does_not_depend_on_workers_or_batches(tree):
    reference = load_folder(tree, batch_size=1, workers=0)
    for workers, batch_size in ((0, 17), (2, 3)):
        other = load_folder(tree, batch_size=batch_size, workers=workers)
        for number in (5, 6):  # the workers live on from one epoch to the next
            images, labels = epoch(reference.train, number)
            images_, labels_ = epoch(other.train, number)
            assert images_.equal(images) and labels_.equal(labels)
        assert epoch(other.val)[0].equal(epoch(reference.val)[0])


def test_streaming_epochs_and_seeds_differ(tree):
    first, other = load_folder(tree, batch_size=17), load_folder(tree, batch_size=17, seed=1)
    images = epoch(first.train, 0)[0]
    assert not epoch(first.train, 1)[0].equal(images)
    assert not epoch(other.train, 0)[0].equal(images)


def test_an_interrupted_epoch_leaves_no_trace(tree):
    data = load_folder(tree, workers=2)
    next(iter(data.train.epoch(0)))
    assert epoch(data.train, 1)[0].equal(epoch(load_folder(tree).train, 1)[0])


def test_eval_crops(tree):
    file = tree / "val" / "cat" / "00.png"
    pixels = {}
    for crop in ("standard", "full"):
        data = load_folder(tree, eval_crop=crop, normalize="none", splits=("val",))
        pixels[crop] = (epoch(data.val)[0][0] * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.open(file)  # 40 x 40
    full = np.asarray(image.resize((72, 72), Image.Resampling.BICUBIC))
    standard = np.asarray(image.resize((82, 82), Image.Resampling.BILINEAR))[5:77, 5:77]
    assert np.array_equal(pixels["full"], full)
    assert np.array_equal(pixels["standard"], standard)


def test_streamed_grey(tree):
    data = load_folder(tree, channels=1)
    assert epoch(data.val)[0].shape == (6, 1, 72, 72) and len(data.std) == 1


def test_val_alone_is_enough(tree, tmp_path):
    (tmp_path / "val").symlink_to(tree / "val")
    assert load_folder(tmp_path, splits=("val",)).val.samples == 6
    with pytest.raises(DataError, match=r"--data-path: expected images in .*/train/<class>/\*.jpg"):
        load_folder(tmp_path)


def make_broken(root: Path, kind: str) -> None:
    """Turn an empty folder into a data set that cannot be read."""
    for name in {"no classes": ["train", "val"], "empty": ["train/cat", "val/cat"]}.get(kind, []):
        (root / name).mkdir(parents=True)
    if kind == "other classes":
        save_images(root / "train/cat", 2, 40)
        save_images(root / "val/horse", 2, 40)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no folder"),
        ("no classes", "has no class folders"),
        ("empty", "class folders hold none"),
        ("other classes", "must have the same class folders"),
    ],
)
def test_broken_trees(tmp_path, kind, message):
    make_broken(tmp_path, kind)
    with pytest.raises(DataError, match=f"^--data-path: [^\n]*{message}[^\n]*$"):
        load_folder(tmp_path, batch_size=1)


def test_imagenet_has_1000_classes(tree):
    with pytest.raises(DataError, match="ImageNet has 1000 classes, but 2 class folders"):
        load_data("ImageNet", data_path=tree)
    with pytest.raises(DataError, match="--data-path DIR is needed"):
        load_data("ImageNet")


# Image files


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    values = np.full((8, 8), 0.6)
    values[:4] = 0.2
    if mode == "I;16":
        image = Image.fromarray((values * 65535).astype(np.uint16))
    else:
        image = Image.fromarray((values * 255).astype(np.uint8)).convert("RGB").convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file, **({"transparency": b"\0\1"} if mode == "P" else {}))
    pixels = np.asarray(read_image(str(file)))
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    if mode != "1":
        assert np.abs(pixels - 255.0 * values[:, :, None]).max() <= 2


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


def not_an_image(file: Path) -> None:
    file.write_text("hello")


@pytest.mark.parametrize("damage", [truncated, not_an_image])
@pytest.mark.parametrize(("size", "workers"), [(32, 0), (72, 0), (72, 2)])
def test_damaged_image_is_named_in_one_line(tmp_path, damage, size, workers):
    save_images(tmp_path / "val" / "cat", 5, 40, vary=True)
    bad = tmp_path / "val" / "cat" / "03.png"
    damage(bad)
    with pytest.raises(DataError, match=f"^cannot read image {bad}: [^\n]+$"):
        epoch(load_folder(tmp_path, size, workers=workers, splits=("val",)).val)


def test_decompression_bomb_is_named(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"^cannot read image .*00.png: Image size .*bomb"):
        load_folder(tree, 32)


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "CIFAR1O"}, r"unknown --dataset 'CIFAR1O': choose from .*did you mean CIFAR10\?"),
        ({"name": "ImageFolder"}, "needs --image-size"),
        ({"image_size": 0}, "--image-size must be at least 1"),
        ({"batch_size": 10_001}, "--batch-size 10001 is more than the 10000 training images"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"augment": "flipcrop"}, r"unknown --augment 'flipcrop': .*did you mean flip-crop\?"),
        ({"eval_crop": "half"}, "unknown --eval-crop 'half': choose from standard, full"),
        ({"normalize": "imagnet"}, r"unknown --normalize .*did you mean imagenet\?"),
    ],
)
def test_bad_arguments_are_the_user_s(options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(**{"name": "Shapes", **options})
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


# Real images


def test_real_cifar_jpegs(real_files, tmp_path):
    root = unpack(real_files / "datasets/cifar10_jpeg.tar.xz", tmp_path, 50, "/val/")
    data = load_folder(root, 32, splits=("val",))
    assert data.val.samples == 50 and data.val.images.shape == (50, 3, 32, 32)
    file = sorted(root.glob("val/*/*.jpg"))[0]
    assert data.val.images[0].permute(1, 2, 0).equal(torch.tensor(np.asarray(Image.open(file))))


def test_real_imagenet_images(real_files, tmp_path):
    root = unpack(real_files / "datasets/imagenet_sample.tar", tmp_path, 6, "/val/")
    data = load_folder(root, 224, splits=("val",), workers=2)
    images, _ = epoch(data.val)
    assert images.shape == (6, 3, 224, 224)
    assert abs(images.mean()) < 1 and 0.5 < images.std() < 2


# Memory and damage


def test_sets_that_do_not_fit_into_memory_give_the_same_batches(tree):
    for augment in ("default", "none"):
        held = load_folder(tree, 32, augment=augment)
        read = load_folder(tree, 32, augment=augment, cache_gb=0, workers=2)
        assert isinstance(held.train, CachedLoader) and isinstance(read.train, FileLoader)
        for number in (0, 3):
            for a, b in zip(epoch(held.train, number), epoch(read.train, number), strict=True):
                assert torch.equal(a, b)
        assert torch.equal(epoch(held.val)[0], epoch(read.val)[0])


def test_the_limit_of_the_cache_is_in_bytes(tree):
    images = sum(1 for _ in tree.rglob("*.png"))
    exact = 3 * 32**2 * images / 1e9
    assert isinstance(load_folder(tree, 32, cache_gb=exact).train, CachedLoader)
    assert isinstance(load_folder(tree, 32, cache_gb=0.999 * exact).train, FileLoader)


@pytest.fixture
def damaged(tree, tmp_path):
    """A copy of the tree in which two training images cannot be read."""
    root = tmp_path / "damaged"
    shutil.copytree(tree, root)
    for name in ("cat", "dog"):
        (root / "train" / name / "02.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize(("size", "workers"), [(32, 0), (72, 0), (72, 2)])
def test_bad_images_are_left_out_counted_and_named(damaged, capfd, size, workers):
    whole = load_folder(damaged, size, workers=workers, skip_bad_images=2, batch_size=6)
    for number in range(2):
        _, labels = epoch(whole.train, number)
        assert len(labels) == 15  # of 17
    shown = capfd.readouterr().err
    assert shown.count("warning: cannot read image") == 2
    assert "cat/02.png" in shown and "dog/02.png" in shown and "2 of at most 2" in shown


def test_a_share_of_nothing_is_an_empty_batch(tree):
    """6 validation images in batches of 5: the second of two processes gets none of the last."""
    for size in (32, 72):
        data = load_folder(tree, size, val_batch_size=5, part=Part(1, 2))
        sizes = [(tuple(images.shape), len(labels)) for images, labels in data.val.epoch(0)]
        assert sizes == [((2, 3, size, size), 2), ((0, 3, size, size), 0)]


@pytest.mark.parametrize("size", [32, 72])
def test_more_bad_images_than_allowed_are_an_error(damaged, size):
    with pytest.raises(DataError, match=r"02.png.*--skip-bad-images"):
        epoch(load_folder(damaged, size, skip_bad_images=1).train)
    with pytest.raises(DataError, match=r"02.png.*--skip-bad-images N"):
        epoch(load_folder(damaged, size).train)


def test_what_is_left_must_make_a_batch(damaged):
    with pytest.raises(UserError, match="--batch-size"):
        load_folder(damaged, 32, skip_bad_images=2, batch_size=16)
    for file in (damaged / "val").rglob("*.png"):
        not_an_image(file)
    with pytest.raises(DataError, match="no image can be read"):
        load_folder(damaged, 32, skip_bad_images=99)


def test_the_first_of_several_processes_names_bad_images(damaged, capfd):
    for this in (0, 1):
        load_folder(damaged, 32, skip_bad_images=2, batch_size=6, part=Part(this, 2))
        assert capfd.readouterr().err.count("left out") == (2 if this == 0 else 0)


@pytest.mark.parametrize("crop", ["standard", "full", "fit"])
def test_evaluation_crops_are_torchvisions(crop):
    """To the bit, for images of any shape, smaller and larger than the crop."""
    rng = np.random.default_rng(0)
    for size in (1, 28, 33, 64):
        resize = {
            "standard": v2.Resize(round(size * 256 / 224)),
            "full": v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
            "fit": v2.Resize(size),
        }[crop]
        reference = v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
        for shape in [(size, size), *rng.integers(1, 100, (20, 2)).tolist()]:
            image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
            found = eval_transform(size, crop)(image)
            assert found.shape == (3, size, size) and found.equal(reference(image))


def test_options_may_be_kept_and_changed():
    options = DataOptions(splits=("val",), normalize="none")
    grey = load_data("Shapes", options, channels=1)
    assert (grey.train, grey.channels, grey.mean) == (None, 1, (0.0,))
    with pytest.raises(TypeError, match="imag_size"):
        load_data("Shapes", options, imag_size=32)


def test_loading_the_built_in_set_does_not_wait_for_torchvision():
    code = "import sys, data; data.load_data('Shapes'); assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
