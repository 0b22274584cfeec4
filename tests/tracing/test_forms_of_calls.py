"""Constants and dead channels are found whatever form a call has, and logits stay the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_scoring.counting.scoring import score
from model_scoring.counting.settings import Settings
from model_scoring.dead_channels import removal
from model_scoring.dead_channels.removal import thin
from model_scoring.tracing import channel_rules
from model_scoring.tracing.forward_pass import trace
from model_scoring.tracing.recorder import TracingError

FP32 = Settings(32, 32, 32, tree_adder=False)


class Net(nn.Module):
    """A convolution `a` of six filters, one of them dead, then a function; `b` reads the six."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 4, 1, bias=False)
        self.n, self.l = nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.wide, self.long = nn.Conv2d(9, 4, 1), nn.Linear(6 * 36, 3)
        self.register_buffer("buffer", torch.ones(1, 6, 6, 6))
        self.register_buffer("kernel", torch.ones(6, 1, 3, 3) / 9)
        self.function = function
        self.a.weight.data[2] = 0

    def forward(self, x):
        return self.function(self, x, self.a(x))


def written(s, x, y):
    """The image goes into a part of a buffer, by way of a view of it."""
    s.buffer[:, :3].copy_(y[:1, :3])
    return s.b(s.buffer)


def cleared(s, x, y):
    """What is stored is changed by way of a view, so that four channels are 0."""
    s.buffer.view(6, 36)[2:].fill_(0.0)
    return s.b(y * s.buffer)


def added_in_place(s, x, y):
    return s.b(y.add_(1.0, alpha=2))


# functions, and the channels that their reader is left with
READ = {
    "chunk": (lambda s, x, y: s.b(torch.cat(y.chunk(chunks=2, dim=1)[::-1], dim=1)), 5),
    "split": (
        lambda s, x, y: s.b(torch.cat(torch.split(y, split_size_or_sections=4, dim=1), 1)),
        5,
    ),
    "split of": (
        lambda s, x, y: s.b(
            torch.cat(torch.split(tensor=y, dim=1, split_size_or_sections=[1, 5]), dim=1)
        ),
        5,
    ),
    "tensor_split": (lambda s, x, y: s.b(torch.cat(torch.tensor_split(y, 3, dim=1), 1)), 5),
    "narrow": (lambda s, x, y: s.b(torch.cat([y[:, 3:], y[:, :3]], 1)), 5),
    "conv2d": (lambda s, x, y: F.conv2d(weight=s.b.weight, input=y), 5),
    "torch.conv2d": (lambda s, x, y: torch.conv2d(y, padding=0, weight=s.b.weight), 5),
    "computed weights": (lambda s, x, y: F.conv2d(y, 2 * s.b.weight), 5),
    "linear": (lambda s, x, y: F.linear(weight=s.l.weight, input=y.mean((2, 3)), bias=s.l.bias), 5),
    "linear, last": (lambda s, x, y: F.linear(weight=s.l.weight, input=y.movedim(1, -1)), 5),
    "addmm": (
        lambda s, x, y: torch.addmm(mat2=s.l.weight.t(), mat1=y.mean((2, 3)), input=s.l.bias),
        5,
    ),
    "baddbmm": (
        lambda s, x, y: torch.baddbmm(s.l.bias, y.flatten(2)[:1].mT, s.l.weight.t()[None]),
        5,
    ),
    "einsum": (lambda s, x, y: torch.einsum("oc,nchw->nohw", s.l.weight, y), 5),
    "mul_": (lambda s, x, y: s.b(y.mul_(2)), 5),
    "mul_ by itself": (lambda s, x, y: s.b(y.mul_(torch.sigmoid(y))), 5),
    "add_": (added_in_place, 5),
    "addcmul": (lambda s, x, y: s.b(torch.addcmul(y, y, tensor2=y, value=0.5)), 5),
    "lerp": (lambda s, x, y: s.b(torch.lerp(weight=0.3, end=2 * y, input=y)), 5),
    "out": (lambda s, x, y: s.b(torch.mul(y, 2, out=torch.empty_like(y))), 5),
    "out, to itself": (lambda s, x, y: s.b(torch.add(y, 1.0, out=y)), 5),
    "out, to numbers": (lambda s, x, y: s.b(torch.add(y, 1.0, out=torch.full_like(y, 3.0))), 5),
    "where": (lambda s, x, y: s.b(torch.where(y > 0, y, y * 0.1)), 5),
    "masked_fill": (lambda s, x, y: s.b(y.masked_fill(mask=y < 0, value=0.0)), 5),
    "maximum": (lambda s, x, y: s.b(torch.maximum(torch.zeros_like(y), y)), 5),
    "clamp": (lambda s, x, y: s.b(torch.clamp(max=3, input=y + 1, min=0)), 5),
    "average": (lambda s, x, y: s.b(F.avg_pool2d(kernel_size=2, input=y + 1)), 5),
    "mean": (lambda s, x, y: s.b(torch.mean(dim=(2, 3), keepdim=True, input=y)), 5),
    "cat": (lambda s, x, y: s.wide(torch.cat(dim=1, tensors=[y, x])), 8),
    "permute": (lambda s, x, y: s.b(torch.permute(dims=(0, 1, 3, 2), input=y)), 5),
    "flatten": (lambda s, x, y: s.long(torch.flatten(start_dim=1, input=y)), 180),
    "reshape": (lambda s, x, y: s.long(torch.reshape(shape=(-1, 216), input=y)), 180),
    "size": (lambda s, x, y: s.long(y.reshape(y.size(dim=0), -1)), 180),
    "batch_norm": (
        lambda s, x, y: s.b(
            F.batch_norm(running_var=s.n.running_var, input=y, running_mean=s.n.running_mean)
        ),
        5,
    ),
    "a kernel": (lambda s, x, y: s.b(F.conv2d(y, s.kernel, groups=6, padding=1)), 5),
    "a kernel made there": (lambda s, x, y: s.b(F.conv2d(y, torch.ones(6, 1, 3, 3), groups=6)), 5),
    "a buffer is written to": (written, 6),
    "a buffer is cleared": (cleared, 2),
}


@pytest.mark.parametrize("name", READ)
@torch.no_grad()
def test_a_dead_filter_is_found(name, monkeypatch):
    monkeypatch.setattr(removal, "_same_function", lambda *_: True)
    function, live = READ[name]
    network = Net(function).eval()
    buffer, images = network.buffer.clone(), torch.randn(2, 3, 6, 6)
    result = score(network, (3, 6, 6), settings=FP32)
    assert not result.trace.unknown and result.trace.followed
    layers = zip(result.records, result.counts["strict"], strict=True)
    assert [c.live_in for r, c in layers if r.weights is not None][-1] == live
    assert torch.equal(network.buffer, buffer)
    found = thin(network, (3, 6, 6)).network
    after = score(found, (3, 6, 6), settings=FP32)
    one, other = (s.totals["strict"] for s in (result, after))
    assert (one.adds, one.mults) == pytest.approx((other.adds, other.mults))
    network.buffer.copy_(buffer)
    expected = network(images)
    network.buffer.copy_(buffer)
    torch.testing.assert_close(found(images), expected, atol=1e-5, rtol=1e-5)


def test_a_kernel_in_a_buffer_reads_its_inputs():
    """Nobody trains it, yet what it reads is needed."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 6, 1)
            self.register_buffer("kernel", torch.randn(4, 6, 1, 1))

        def forward(self, x):
            return F.conv2d(self.a(x), self.kernel)

    counts = score(Fixed(), (3, 6, 6), settings=FP32).counts["strict"]
    assert [c.live_out for c in counts] == [6, 4]


def test_random_numbers_are_no_constants():
    network = Net(lambda s, x, y: s.b(y * torch.zeros_like(y).bernoulli_(0.5))).eval()
    assert trace(network, (3, 6, 6)).records[-1].reads.constants.isnan().sum() == 5


def test_a_mistake_of_the_rules_is_not_blamed_on_the_network(monkeypatch):
    def wrong(call):
        raise RuntimeError("a mistake")

    monkeypatch.setitem(channel_rules.RULES, "elementwise", wrong)
    with pytest.raises(TracingError, match="relu: RuntimeError: a mistake"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 6, 6))


def test_numbers_that_come_from_an_image_are_no_constants():
    """Code that asks for values is traced with those of one image, which are another's no more."""
    network = Net(lambda s, x, y: s.b(y + torch.full_like(y, float(x.sum() + 1))))
    network.a.weight.data[2] = 0
    records = trace(network.eval(), (3, 6, 6)).records
    assert next(r for r in records if r.name == "b").reads.constants.isnan().all()
