"""A network's classes and a data set's are matched by their names."""

import random
from pathlib import Path

import pytest
import torch
from helpers import save_images

from data import DATASETS, load_data
from data.batches import CachedLoader
from data.class_names import class_numbers, match_classes, numbering
from data.errors import DataError
from data.shapes import FIGURES

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SYNSETS = [f"n{number:08}" for number in random.Random(0).sample(range(10**7), 1000)]


def test_the_same_names_in_any_order_get_the_network_s_numbers():
    for seed, names in enumerate((CIFAR10, SYNSETS, list(FIGURES), ["a"], ["1", "x", "2"])):
        found = random.Random(seed).sample(names, len(names))
        classes = match_classes(found, names)
        assert classes.names == names
        assert [names[label] for label in classes.labels] == found
        assert bool(classes.renumbered()) == (found != names)
        assert match_classes(names, names) == (names, list(range(len(names))))


@pytest.mark.parametrize(
    ("found", "network"),
    [
        (["T-shirt_top", "ankle boot"], ["T-shirt/top", "Ankle boot"]),
        (["aquarium_fish", "bee"], ["aquarium fish", "Bee"]),
        (["caf\u0065\u0301", "bar"], ["caf\u00e9", "bar"]),  # as macOS and Linux write folders
        (["caf\udcc3\udca9", "bar"], ["caf\u00e9", "bar"]),  # with and without UTF-8
    ],
)
def test_spellings_of_one_name(found, network):
    assert match_classes(found, network) == (network, [0, 1])
    assert match_classes(found[::-1], network) == (network, [1, 0])


def test_spelling_counts_where_it_alone_tells_classes_apart():
    assert match_classes(["Cat", "cat"], ["cat", "Cat"]).labels == [1, 0]
    with pytest.raises(DataError, match="'Cat' here, 'dog' there"):
        match_classes(["Cat", "cat"], ["cat", "dog"])


def test_names_that_only_count_are_numbers():
    """Folders are sorted as text: 0, 1, 10, 11, 2."""
    folders = sorted(map(str, range(100)))
    assert class_numbers(folders) == [int(name) for name in folders]
    for names in ([f"class {i}" for i in range(100)], [f"{i:03}" for i in range(1, 101)]):
        assert class_numbers(names) == list(range(100))
        assert match_classes(folders, names).labels == [int(name) for name in folders]
    named = [f"name {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    assert class_numbers(named) is class_numbers(SYNSETS) is class_numbers(["1", "3"]) is None
    numbered = match_classes(folders, named)
    assert (numbered.names, numbered.labels) == (named, [int(name) for name in folders])
    as_it_was = match_classes(named, [f"class {i}" for i in range(100)])
    assert (as_it_was.names, as_it_was.renumbered()) == (named, "")


def test_digits_of_mnist_by_name_and_by_folder():
    known = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    known, folders = [f"{i} - {name}" for i, name in enumerate(known)], list("0123456789")
    assert match_classes(folders, known) == match_classes(known, folders)
    assert match_classes(folders, known) == (known, list(range(10)))
    with pytest.raises(DataError, match="--ignore-class-names"):
        match_classes(sorted(name.split()[-1] for name in known), known)


def test_numbers_that_stand_for_names_are_said():
    for folders in (["0", "1", "2", "3"], ["1", "2", "3", "4"], ["c03", "c02", "c01", "c00"]):
        own = [int(name.strip("c")) - (folders[0] == "1") for name in folders]
        known = ["ant", "bee", "cow", "dog"]
        said = ", ".join(
            f"{f} is {known[i]!r}" for f, i in list(zip(folders, own, strict=True))[:3]
        )
        assert numbering(folders, known).endswith(f": {said} and 1 more")
        for network in ((), ["0", "1", "2", "3"], known[:2]):
            assert numbering(folders, network) == numbering(known, network or folders) == ""


def test_unknown_names_change_nothing():
    assert match_classes(CIFAR10, ()) == (CIFAR10, list(range(10)))
    assert match_classes(CIFAR10, ["a", "b"]) == (CIFAR10, list(range(10)))


@pytest.mark.parametrize(
    ("found", "network", "words"),
    [
        (["cat", "dog"], ["cat", "horse"], "'dog' here, 'horse' there"),
        (list(FIGURES), CIFAR10, "'disc', 'ring', 'square' and 7 more here, 'airplane', "),
        (["a\n\x1b", "b"], ["c", "b"], r"'a\n\x1b' here"),
        (["crane", "maillot", "crane"], ["crane", "crane", "maillot"], "'crane', 'crane' here"),
        (["a", "b", "c"], ["b", "a", "a"], "'c' here, 'a', 'a' there"),
    ],
)
def test_other_names_are_an_error_that_names_the_first(found, network, words):
    with pytest.raises(DataError) as caught:
        match_classes(found, network)
    assert words in str(caught.value) and "--ignore-class-names" in str(caught.value)
    assert "\n" not in str(caught.value)


def tree(root: Path) -> Path:
    for split in ("train", "val"):
        for k, name in enumerate("abc"):
            save_images(root / split / name, 3 + k, 16, level=60 * k)
    return root


@pytest.mark.parametrize("size", [16, 72])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_images_keep_their_classes(tmp_path, size, cache_gb):
    """Held in memory or read while training, in all splits."""
    options = {"data_path": tree(tmp_path), "image_size": size, "batch_size": 12, "workers": 0}
    own = load_data("ImageFolder", cache_gb=cache_gb, **options)
    other = load_data("ImageFolder", cache_gb=cache_gb, class_names=("c", "a", "b"), **options)
    assert isinstance(own.val, CachedLoader) == (size == 16 and cache_gb == 1)
    assert (own.renumbered, other.class_names) == ("", ["c", "a", "b"])
    assert other.renumbered.endswith("first 'a', 1 instead of 0")
    for split in ("train", "val"):
        batches = [list(getattr(data, split).epoch(0)) for data in (own, other)]
        for (images, labels), (same, numbers) in zip(*batches, strict=True):
            assert same.equal(images) and numbers.equal(torch.tensor([1, 2, 0])[labels])


def test_folders_that_only_count_are_said_to_stand_for_classes(tmp_path):
    for name in "012":
        save_images(tmp_path / "val" / name, 2, 16)
    options = {"data_path": tmp_path, "image_size": 16, "splits": ("val",)}
    for names, said in (((), ""), (("x", "y", "z"), "0 is 'x', 1 is 'y', 2 is 'z'")):
        assert load_data("ImageFolder", class_names=names, **options).renumbered[-28:] == said


def test_built_in_sets_are_matched_as_well():
    names = sorted(FIGURES)
    own, other = (load_data("Shapes", splits=("val",), class_names=n) for n in ((), names))
    assert own.class_names == list(FIGURES) and other.class_names == names
    found = [names[i] for i in other.val.labels.tolist()]
    assert found == [own.class_names[i] for i in own.val.labels.tolist()]
    assert DATASETS["Shapes"].classes == len(names)
