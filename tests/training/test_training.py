"""The training step and loop: every flag of the recipe against a formula or a plain loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import scale
from torch import nn

from data.batches import WHOLE, CachedLoader, Preparation, Schedule
from model_compound_scaling.runs.save_interval import Clock, Interval
from model_compound_scaling.training.evaluation import evaluate
from model_compound_scaling.training.loop import Progress, train_epoch
from model_compound_scaling.training.optimizers import load_optimizer, make_sgd
from model_compound_scaling.training.recipe import Recipe
from model_compound_scaling.training.step import TrainStep
from model_compound_scaling.training.weight_average import Average

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def make_step(network, **options):
    decay = options.pop("ema", 0.0)
    averaged = Average(network, decay) if decay else None
    sgd = make_sgd(network, **SGD)
    return TrainStep(
        network, network=network, optimizer=sgd, classes=5, recipe=Recipe(**options),
        averaged=averaged,
    )  # fmt: skip


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (6,), generator=generator)


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def largest_difference(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_a_plain_step_is_the_textbook_s():
    """Against Nesterov momentum written out: v = 0.9 v + g, w -= lr (g + 0.9 v)."""
    ours, theirs = small_network(), small_network()
    step, velocity = make_step(ours), [torch.zeros_like(p) for p in theirs.parameters()]
    for i in range(4):
        images, labels = batch(i)
        loss, hits = step(images, labels, seed=i, number=i)
        logits = theirs(images)
        expected = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(expected, list(theirs.parameters()))
        with torch.no_grad():
            for p, g, v in zip(theirs.parameters(), gradients, velocity, strict=True):
                g = g + SGD["weight_decay"] * p
                v.mul_(0.9).add_(g)
                p.sub_(SGD["lr"] * (g + 0.9 * v))
        assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
        assert int(hits) == int((logits.argmax(1) == labels).sum())
    assert largest_difference(weights(ours), weights(theirs)) < 1e-6


def test_label_smoothing_is_a_mixture_with_all_classes():
    images, labels = batch()
    network = small_network()
    logs = network(images).log_softmax(1)
    one_hot = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    loss, _ = make_step(small_network(), label_smoothing=0.2)(images, labels, seed=0, number=0)
    assert float(loss) == pytest.approx(-(one_hot * logs).sum(1).mean().item(), rel=1e-6)


@pytest.mark.parametrize("flag", ["mixup", "cutmix"])
def test_mixing_depends_on_the_seed_only_and_mixes_labels(flag):
    images, labels = batch()
    losses = []
    for seed in (1, 1, 2):
        step = make_step(small_network(), **{flag: 1.0})
        seen = []
        step.forward = lambda x, step=step, seen=seen: seen.append(x) or step.network(x)
        losses.append(float(step(images, labels, seed=seed, number=0)[0]))
        assert not torch.equal(seen[0], images)
        if flag == "mixup":  # the same convex combination of each image and its neighbour
            other = images.roll(1, 0)
            share = (seen[0] - other)[0, 0, 0, 0] / (images - other)[0, 0, 0, 0]
            assert torch.allclose(seen[0], share * images + (1 - share) * other, atol=1e-5)
        else:  # every pixel is of one of the two
            assert ((seen[0] == images) | (seen[0] == images.roll(1, 0))).all()
    assert losses[0] == losses[1] != losses[2]


def test_the_moving_average_is_one():
    network = small_network()
    step = make_step(network, ema=0.9)
    expected = None
    for i in range(5):
        step(*batch(i), seed=i, number=i)
        now = weights(network)
        mixed = [0.9 * a + 0.1 * b for a, b in zip(expected or now, now, strict=True)]
        expected = mixed if expected else now  # the first one starts it
    assert largest_difference(weights(step.averaged.module), expected) < 1e-6


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near(amp):
    plain, mixed = small_network(), small_network()
    steps = make_step(plain), make_step(mixed, amp=amp)
    for i in range(3):
        losses = [float(step(*batch(i), seed=i, number=i)[0]) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert 0 < largest_difference(weights(plain), weights(mixed)) < 0.05


def test_a_step_s_scaler_and_average_are_saved():
    first = make_step(small_network(), amp="fp16", ema=0.5)
    for i in range(3):
        first(*batch(i), seed=i, number=i)
    second = make_step(small_network(), amp="fp16", ema=0.5)
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == first.scaler.get_scale()
    assert second.averaged.started


def test_a_first_step_that_overflows_leaves_no_trace():
    """Fused SGD makes its momentum in the first step, even if that is skipped."""
    step = make_step(small_network(), amp="fp16")
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = weights(step.network)
    step(*batch(), seed=0, number=0)
    assert largest_difference(weights(step.network), before) == 0
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert len(momenta) == len(before) and not any(m.any() for m in momenta)


def test_a_resumed_optimizer_has_the_moments_of_one_and_the_settings_of_the_other():
    saved = make_step(small_network())
    saved(*batch(), seed=0, number=0)
    network = small_network()
    optimizer = make_sgd(network, lr=0.5, momentum=0.8, weight_decay=0.0)
    load_optimizer(optimizer, saved.optimizer.state_dict(), keep=("lr",))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.0)
    pairs = zip(optimizer.state.values(), saved.optimizer.state.values(), strict=True)
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in pairs)


def test_channels_last_and_compiled_networks_give_the_same_losses():
    images, labels = batch()
    plain = make_step(small_network())
    other = make_step(small_network().to(memory_format=torch.channels_last))
    compiled = make_step(small_network())
    compiled.forward = torch.compile(compiled.network, backend="aot_eager")
    for i in range(3):
        losses = [
            float(step(images, labels, seed=i, number=i)[0]) for step in (plain, other, compiled)
        ]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_learning_rates():
    cosine = [Recipe("cosine").lr_factor(e, 10) for e in range(10)]
    assert cosine == [pytest.approx((1 + math.cos(math.pi * e / 10)) / 2) for e in range(10)]
    steps = [Recipe("step").lr_factor(e, 90) for e in (0, 29, 30, 59, 60, 89)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = [Recipe("cosine", warmup_epochs=2).lr_factor(e, 12) for e in range(12)]
    assert warm[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and warm[2:] == pytest.approx(cosine)


def loader(samples=22, batch_size=6):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (samples, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (samples,), generator=generator)
    schedule = Schedule(samples, batch_size=batch_size, train=True, seed=0, part=WHOLE)
    stats = (0.5,) * 3, (0.25,) * 3
    return CachedLoader(images, labels, schedule=schedule, prepare=Preparation(None, stats, 0))


def test_an_epoch_in_two_pieces_is_the_whole_one():
    results = []
    for pieces in ((4,), (1, 3), (2, 1, 1)):
        network, data = small_network(), loader()
        step, done = make_step(network), Progress({})

        class Enough(Exception):
            pass

        for piece in pieces:
            until = done.batch + piece

            def stop(progress, until=until):
                if progress.batch == until:
                    raise Enough

            with pytest.raises(Enough):
                train_epoch(step, data, done, seed=1, epoch=2, label="", after=stop)
            done = Progress(**done.state())
        assert done.batch == len(data) and done.samples == 22
        results.append((weights(network), done.means()))
    for result in results[1:]:
        assert largest_difference(result[0], results[0][0]) == 0 and result[1] == results[0][1]


def test_evaluation_counts_every_image_once():
    network, data = small_network(), loader(samples=23)
    images = [image for image, _ in data.epoch(0)]
    labels = torch.cat([label for _, label in data.epoch(0)])
    with torch.no_grad():
        logits = torch.cat([network.eval()(image) for image in images])
    found = evaluate(network, data.epoch(0))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert found.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    assert found.top5 == pytest.approx(100)


def test_intervals():
    assert Interval.parse("500steps") == Interval(steps=500)
    assert Interval.parse("15min") == Interval(seconds=900)
    for wrong in ("5", "0steps", "-1min", "5 min", "1h"):
        with pytest.raises(ValueError, match="interval"):
            Interval.parse(wrong)
    clock = Clock(Interval(steps=3))
    assert [clock.due() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_the_recipe_s_flags_reach_the_training(images, tmp_path):
    flags = (
        "--epochs 3 --warmup-epochs 1 --label-smoothing 0.1 --ema 0.9 --mixup 0.2 --cutmix 1 "
        "--amp bf16 --channels-last --deterministic"
    )
    try:
        assert scale(images, tmp_path, *flags.split()) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    last = torch.load(next(tmp_path.glob("*/last.pt")), weights_only=True)
    assert [epoch["lr"] for epoch in last["history"]] == pytest.approx([0.05, 0.1, 0.05])
    trained, averaged = last["resume"]["state_dict"], last["state_dict"]
    assert not torch.equal(trained["conv1.weight"], averaged["conv1.weight"])
    assert averaged["conv1.weight"].is_contiguous()


class CountsOnChannelsFirst(nn.Module):
    """Networks whose code cannot take images with the channels last, or misreads them."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.linear, self.way = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5), way
        self.seen = []

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((len(x), last))
        x = self.conv(x)
        if self.way == "view":
            return self.linear(x.view(len(x), -1))
        if self.way == "strides":
            x = x.as_strided(x.shape, (144, 36, 6, 1))
        elif len(x) > 2 and last:
            x.view(-1)
        return self.linear(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("way", "seen"),
    [
        (None, []),
        ("view", [(2, False), (2, True), *[(6, False)] * 3]),
        ("strides", [(2, False), (2, True), *[(6, False)] * 3]),
        ("more images", [(2, False), (2, True), (6, True), *[(6, False)] * 3]),
    ],
)
def test_evaluation_is_in_the_layout_that_is_faster_and_changes_no_figure(way, seen):
    batches = [batch(seed) for seed in range(3)]
    network = (CountsOnChannelsFirst(way) if way else small_network()).eval()
    with torch.no_grad():
        logits = torch.cat([network(images) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    found = evaluate(network, batches)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert found.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    if way:
        assert network.seen[3:] == seen


def test_evaluation_leaves_the_network_as_it_is():
    batches = [batch(seed) for seed in range(3)]
    seen = []
    network = small_network()
    network[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].stride()[1]))
    evaluate(network, batches)
    assert seen[1:] == [1] * 4  # neighbours in memory are channels, but where both are compared
    assert network[0].weight.is_contiguous()  # and training goes on with what it had
