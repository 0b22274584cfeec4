"""Learning from a teacher: the loss against its formula, the teacher left alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_compound_scaling.training.distillation import Distillation, Teacher
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.recipe import Recipe
from model_compound_scaling.training.step import TrainStep


def softmax(logits):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1), (0.3, 1), (0.7, 4), (1.0, 2.5)])
def test_the_loss_is_the_formula(share, temperature, reverse):
    generator = torch.Generator().manual_seed(1)
    logits, wanted = (3 * torch.randn(6, 5, generator=generator).double() for _ in range(2))
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    p, q = (softmax(x.numpy() / temperature) for x in (wanted, logits))
    p, q = (q, p) if reverse else (p, q)
    divergence = (p * np.log(p / q)).sum() / 6
    plain = -np.log(softmax(logits.numpy())[range(6), labels]).mean()
    expected = (1 - share) * plain + share * temperature**2 * divergence
    loss = Distillation(nn.Identity(), share, temperature, reverse).loss
    assert float(loss(F.cross_entropy(logits, labels), logits, wanted)) == pytest.approx(expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_its_gradient_by_finite_differences(reverse):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(3, 4, dtype=torch.float64)
    distillation = Distillation(nn.Identity(), 0.6, 3.0, reverse)

    def loss(x):
        student, teacher = (F.log_softmax(y / 3, 1) for y in (x, wanted))
        pair = (teacher, student) if reverse else (student, teacher)
        return 0.4 * x[0, 0] + 0.6 * 9 * F.kl_div(*pair, reduction="batchmean", log_target=True)

    assert torch.autograd.gradcheck(loss, logits)
    ours = torch.autograd.grad(distillation.loss(logits[0, 0], logits, wanted), logits)[0]
    assert torch.allclose(ours, torch.autograd.grad(loss(logits), logits)[0], atol=1e-6)


def test_a_teacher_sees_its_own_normalisation_and_numbers_classes_as_the_student():
    raw = torch.rand(2, 3, 4, 4)
    mean, std, own_mean, own_std = (torch.rand(1, 3, 1, 1) + 0.2 for _ in range(4))
    seen = []

    class Network(nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.tensor([[10.0, 11.0, 12.0]] * len(images))

    order = torch.tensor([2, 0, 1])
    teacher = Teacher(Network(), std / own_std, (mean - own_mean) / own_std, order)
    assert teacher((raw - mean) / std).tolist() == [[12.0, 10.0, 11.0]] * 2
    assert torch.allclose(seen[0], (raw - own_mean) / own_std, atol=1e-5)


def networks(count):
    torch.manual_seed(0)
    layers = lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())  # noqa: E731
    return [nn.Sequential(*layers(), nn.Linear(4 * 36, 5)) for _ in range(count)]


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_step_teaches_with_the_same_images_and_leaves_the_teacher_alone(mixup):
    student, master = networks(2)
    seen = []
    for network in (student, master):
        network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    whole = torch.tensor(1.0), torch.tensor(0.0), torch.arange(5)
    teacher = Teacher(master, *whole)
    before = {k: v.clone() for k, v in master.state_dict().items()}
    sgd = make_sgd(student, lr=0.1, momentum=0.9, weight_decay=0.0)
    step = TrainStep(student, network=student, optimizer=sgd, classes=5,
                     recipe=Recipe(mixup=mixup),
                     distillation=Distillation(teacher, 1.0, 2.0))  # fmt: skip
    student.train()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    losses = [float(step(images, labels, seed=i, number=i)[0]) for i in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert torch.equal(seen[0], images) == (not mixup)
    assert all(torch.equal(before[k], v) for k, v in master.state_dict().items())
    assert not any(module.training for module in master.modules())
    assert all(p.grad is None for p in master.parameters())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
