"""Augmentation: every operation against torchvision's, and what the randomness depends on."""

from itertools import product

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from data import augmentation as aug
from data import datasets
from data.batches import WHOLE, CachedLoader, Preparation, Schedule
from data.stateless_random import bits, sample_seed, shuffled, uniform

STATS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
FULL = aug.Recipe(flip=True, pad=4, jitter=True, cutout=True)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"))]  # fmt: skip


def pictures(n: int = 24, channels: int = 3, size: int = 32) -> torch.Tensor:
    """uint8 images that use the whole range, among them a grey, a black and a white one."""
    images = torch.randint(0, 256, (n, channels, size, size), generator=torch.manual_seed(1))
    images[0] = images[0, :1]
    images[1], images[2] = 0, 255
    return images.byte()


def one_by_one(operation, images, values) -> torch.Tensor:
    return torch.stack([operation(x, v.item()) for x, v in zip(images, values, strict=True)])


def test_flip_is_torchvisions():
    images = pictures()
    flipped = torch.arange(len(images)) % 3 == 0
    result = aug.flip(images, flipped)
    assert result[flipped].equal(TF.horizontal_flip(images[flipped]))
    assert result[~flipped].equal(images[~flipped])


def test_pad_crop_is_torchvisions():
    places = torch.tensor(list(product((0, 1, 4, 7, 8), (0, 3, 4, 5, 8))))
    images = pictures(len(places))
    expected = [
        TF.crop(TF.pad(x, 4), int(top), int(left), 32, 32)
        for x, (top, left) in zip(images, places, strict=True)
    ]
    assert aug.pad_crop(images, *places.T, pad=4).equal(torch.stack(expected))


BLENDS = {  # operation: (to_grey, to_mean, torchvision's)
    aug.BRIGHTNESS: (0, 0, TF.adjust_brightness),
    aug.CONTRAST: (0, 1, TF.adjust_contrast),
    aug.SATURATION: (1, 0, TF.adjust_saturation),
}


@pytest.mark.parametrize("operation", BLENDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_blend_is_torchvisions(operation, channels):
    to_grey, to_mean, reference = BLENDS[operation]
    images = aug.to_float(pictures(channels=channels))
    factors = torch.linspace(0.7, 1.3, len(images))
    expected = one_by_one(reference, images, factors)
    ones = torch.ones(len(images))
    result = aug.blend(images, factors, to_grey * ones, to_mean * ones)
    assert torch.allclose(result, expected, atol=2e-6)


def test_factor_one_changes_nothing():
    images = aug.to_float(pictures())
    ones = torch.ones(len(images))
    assert aug.blend(images.clone(), ones, ones, ones).equal(images)


def test_hue_is_torchvisions():
    images = aug.to_float(pictures())
    for shifts in (torch.linspace(-0.075, 0.075, len(images)), torch.linspace(-0.5, 0.5, 24)):
        expected = one_by_one(TF.adjust_hue, images, shifts)
        assert torch.allclose(aug.shift_hue(images, shifts), expected, atol=1e-5)


def test_jitter_applies_each_image_s_own_order():
    images = aug.to_float(pictures(len(aug.ORDERS)))
    factors = 1 + 0.3 * (2 * torch.rand(4, len(images), generator=torch.manual_seed(2)) - 1)
    factors[aug.HUE] = (factors[aug.HUE] - 1) / 4
    operations = {op: reference for op, (_, _, reference) in BLENDS.items()}
    operations[aug.HUE] = TF.adjust_hue
    expected = images.clone()
    for i, order in enumerate(aug.ORDERS.tolist()):
        for op in order:
            expected[i] = operations[op](expected[i], factors[op, i].item())
    assert torch.allclose(aug.jitter(images, factors, aug.ORDERS), expected, atol=1e-5)


def test_normalize_is_torchvisions():
    images = aug.to_float(pictures())
    expected = TF.normalize(images, **STATS)
    assert torch.allclose(aug.normalize(images, **STATS), expected, atol=1e-6)


def test_cutout_zeroes_a_clipped_square():
    row, column = torch.tensor([0, 16, 31]), torch.tensor([5, 16, 31])
    images = aug.cutout(torch.ones(3, 3, 32, 32), row, column, size=16)
    expected = torch.ones(3, 3, 32, 32)
    for i, (top, bottom, left, right) in enumerate(
        [(0, 8, 0, 13), (8, 24, 8, 24), (23, 32, 23, 32)]
    ):
        expected[i, :, top:bottom, left:right] = 0
    assert images.equal(expected)


def test_cutout_shrinks_with_the_image():
    recipe = aug.Recipe(cutout=True)
    images = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    index = torch.arange(64)
    result = aug.augment(
        images, recipe=recipe, mean=(0,) * 3, std=(1,) * 3, seed=0, epoch=0, index=index
    )
    zeros = (result[:, 0] == 0).sum((1, 2))
    assert zeros.max() == 8 * 8 and zeros.min() >= 4 * 4


def test_variants():
    assert datasets.variant(FULL, "default") == FULL
    assert datasets.variant(FULL, "flip-crop") == aug.Recipe(flip=True, pad=4)
    assert datasets.variant(FULL, "none") is None


def reference_bits(seed: int, epoch: int, index: int, draw: int) -> int:
    """The same hash with Python's unbounded integers."""
    word, key = (1 << 64) - 1, 0
    for coordinate in (seed, epoch, index * 16 + draw):
        key = (key + (coordinate + 1) * 0x9E3779B97F4A7C15) & word
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & word
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB & word
        key ^= key >> 31
    return key


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_splitmix64(device):
    index = torch.tensor([0, 1, 77, 1_281_166], device=device)
    for seed, epoch in product((0, 1, 2**40), (0, 249)):
        result = bits(seed, epoch, index, 3).cpu()
        expected = [[reference_bits(seed, epoch, i, d) for i in index.tolist()] for d in range(3)]
        assert [[v & (1 << 64) - 1 for v in row] for row in result.tolist()] == expected


def test_uniform_is_uniform_and_uncorrelated():
    u = uniform(0, 0, torch.arange(50_000), aug.DRAWS).double()
    assert u.min() >= 0 and u.max() < 1
    assert torch.allclose(u.mean(1), torch.tensor(0.5).double(), atol=0.006)
    assert torch.allclose(u.var(1), torch.tensor(1 / 12).double(), atol=0.002)
    others = [uniform(1, 0, torch.arange(50_000), 1), uniform(0, 1, torch.arange(50_000), 1)]
    rows = torch.cat([u, u[:1].roll(1, 1), *others])
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.025


def test_shuffle_depends_on_seed_and_epoch():
    orders = [shuffled(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(o.sort().values.equal(torch.arange(1000)) for o in orders)
    assert not orders[0].equal(orders[1]) and not orders[0].equal(orders[2])
    assert shuffled(0, 1, 1000).equal(orders[1])


def test_sample_seeds_differ():
    seeds = {sample_seed(s, e, i) for s in range(3) for e in range(5) for i in range(100)}
    assert len(seeds) == 1500 and min(seeds) >= 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(device, channels):
    images = pictures(64, channels).to(device)
    stats = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    index = torch.arange(64, device=device) + 1000
    together = aug.augment(images, recipe=FULL, **stats, seed=3, epoch=7, index=index)
    for i in range(64):
        alone = aug.augment(
            images[i : i + 1], recipe=FULL, **stats, seed=3, epoch=7, index=index[i : i + 1]
        )
        assert alone[0].equal(together[i])
    mixed = torch.randperm(64, generator=torch.manual_seed(0)).to(device)
    again = aug.augment(images[mixed], recipe=FULL, **stats, seed=3, epoch=7, index=index[mixed])
    assert again.equal(together[mixed])


@pytest.mark.parametrize("device", DEVICES)
def test_a_loader_augments_as_the_function_does(device):
    """On a GPU from a CUDA graph, but for the last batch, which is smaller."""
    stats = (STATS["mean"], STATS["std"])
    schedule = Schedule(40, batch_size=16, train=True, seed=3, part=WHOLE)
    images = pictures(40).to(device)
    prepare = Preparation(FULL, stats, seed=3)
    loader = CachedLoader(images, torch.arange(40, device=device), schedule, prepare)
    for epoch in (0, 1, 0):
        batches = list(loader.epoch(epoch))
        assert [len(labels) for _, labels in batches] == [16, 16, 8]
        for index, (found, labels) in zip(schedule.epoch(epoch), batches, strict=True):
            index = index.to(device)
            random = {"seed": 3, "epoch": epoch, "index": index}
            assert found.equal(aug.augment(images[index], recipe=FULL, **STATS, **random))
            assert labels.equal(index)


def test_epochs_and_seeds_differ():
    images, index = pictures(), torch.arange(24)
    results = [
        aug.augment(images, recipe=FULL, **STATS, seed=seed, epoch=epoch, index=index)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert not results[0].equal(results[1]) and not results[0].equal(results[2])


def test_jitter_parameters():
    factors, order = aug.jitter_parameters(uniform(0, 0, torch.arange(48_000), 5))
    strength = torch.tensor([0.3, 0.3, 0.3, 0.075])
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert torch.allclose(factors.amin(1), centre - strength, atol=1e-3)
    assert torch.allclose(factors.amax(1), centre + strength, atol=1e-3)
    assert torch.allclose(factors.mean(1), centre, atol=5e-3)
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24 and counts.min() > 1800 and counts.max() < 2200


def test_distribution_of_the_jitter_is_torchvisions():
    """Mean and spread of what happens to one coloured image, over many draws."""
    n = 4000
    image = torch.tensor([200, 120, 60], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    ours = aug.augment(
        image.expand(n, 3, 2, 2), recipe=aug.Recipe(jitter=True), mean=(0.0,) * 3, std=(1.0,) * 3,
        seed=0, epoch=0, index=torch.arange(n),
    )[:, :, 0, 0]  # fmt: skip
    torch.manual_seed(0)
    reference = v2.ColorJitter(0.3, 0.3, 0.3, 0.075)
    theirs = torch.stack([reference(image / 255)[:, 0, 0] for _ in range(300)])
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.03)
    assert torch.allclose(ours.std(0), theirs.std(0), atol=0.03)


def test_the_source_images_stay_as_they_are():
    images = pictures()
    before = images.clone()
    aug.augment(images, recipe=FULL, **STATS, seed=0, epoch=0, index=torch.arange(24))
    assert images.equal(before)
