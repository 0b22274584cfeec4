"""What is shared is stored once; what is not shared counts at each use."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import MICRONET
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.ops import FrozenBatchNorm2d

from model_compound_scaling.networks.building import build
from model_scoring.counting import report
from model_scoring.counting.scoring import quantized_zeros, score
from model_scoring.counting.settings import RULE_SETS, Settings
from model_scoring.dead_channels.removal import thin

FP32 = Settings(32, 32, 32, tree_adder=False)


class Graph(nn.Module):
    """Layers and parameters, and a function of them and the image."""

    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def conv(c_in=4, c_out=4, kernel=1, **options):
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


def stored(network: nn.Module, shape=(4, 6, 6)) -> list[float]:
    """Parameters by the published and the strict rules."""
    totals = score(network.eval(), shape, settings=FP32).totals
    return [totals[rules].params for rules in RULE_SETS]


def pooled(x):
    return x.mean((2, 3))


def tied_linear() -> nn.Module:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), first, last)


def tied_bias() -> nn.Module:
    first, last = conv(), conv()
    last.bias = first.bias
    return nn.Sequential(first, last)


def same_under_two_names() -> nn.Module:
    layer = conv()
    return Graph(lambda s, x: s.b(F.relu(s.a(x))), a=layer, b=layer)


def equal_copies() -> nn.Module:
    layer = conv()
    return nn.Sequential(layer, copy.deepcopy(layer))


def memory_in_common() -> nn.Module:
    whole, part = conv(4, 6, bias=False), conv(4, 2, bias=False)
    part.weight = nn.Parameter(whole.weight.data[:2])
    return Graph(lambda s, x: s.a(x).sum(1, True) + s.b(x), a=whole, b=part)


def attention() -> nn.Module:
    """One matrix for queries, keys and values, of which three thirds are used."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True, bias=False)
    return Graph(lambda s, x: s.a(y := x.flatten(2).mT, 2 * y, y + 1)[0], a=layer)


class Standardized(nn.Conv2d):
    def forward(self, x):
        rows = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def standardized_twice() -> nn.Module:
    layer = Standardized(4, 4, 3, padding=1)
    return nn.Sequential(layer, nn.ReLU(), layer)


def weight_norm_twice() -> nn.Module:
    layer = parametrizations.weight_norm(conv())
    return nn.Sequential(layer, nn.ReLU(), layer)


def weight_norm_by_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(conv()))


def at_two_sizes() -> nn.Module:
    return Graph(lambda s, x: pooled(s.a(x)) + pooled(s.a(F.avg_pool2d(x, 2))), a=conv(kernel=3))


def graph(function, **parts):
    return lambda: Graph(function, **{name: make() for name, make in parts.items()})


def scale():
    return nn.Parameter(torch.rand(4, 1, 1) + 0.5)


def parameter(*shape):
    return lambda: nn.Parameter(torch.randn(shape))


CASES = {
    "a slice of weights and biases": (
        graph(
            lambda s, x: torch.cat([F.conv2d(x, s.w, s.b), F.conv2d(x, s.w[:2], s.b[:2])], 1),
            w=parameter(4, 4, 1, 1),
            b=parameter(4),
        ),
        20,
    ),
    "every second row and its bias": (
        graph(
            lambda s, x: torch.cat(
                [F.linear(pooled(x), s.w, s.b), F.linear(pooled(x), s.w[::2], s.b[::2])], 1
            ),
            w=parameter(4, 4),
            b=parameter(4),
        ),
        20,
    ),
    "a bias that is a scale": (
        graph(
            lambda s, x: F.conv2d(x, s.w, s.b) * s.b[:, None, None],
            w=parameter(4, 4, 1, 1),
            b=parameter(4),
        ),
        20,
    ),
    "a bias that is a weight": (
        graph(lambda s, x: F.conv2d(x, s.w, s.w[:, 0, 0, 0]), w=parameter(4, 4, 1, 1)),
        16,
    ),
    "an expanded kernel": (
        graph(lambda s, x: F.conv2d(x, s.w.expand(4, 1, 3, 3), groups=4), w=parameter(1, 1, 3, 3)),
        9,
    ),
    "an expanded bias": (
        graph(
            lambda s, x: F.conv2d(x, s.w, s.b.expand(4)), w=parameter(4, 4, 1, 1), b=parameter(1)
        ),
        17,
    ),
    "an expanded row": (
        graph(lambda s, x: F.linear(pooled(x), s.w.expand(5, 4)), w=parameter(1, 4)),
        4,
    ),
    "an expanded matrix": (
        graph(
            lambda s, x: torch.bmm(x.permute(0, 2, 3, 1)[0], s.w.t()[None].expand(6, 4, 5)),
            w=parameter(5, 4),
        ),
        20,
    ),
    "an expanded scale": (graph(lambda s, x: x * s.g.expand(4, 6, 6), g=parameter(4, 1, 1)), 4),
    "a module under two names": (same_under_two_names, 20),
    "equal weights that are two": (equal_copies, 40),
    "a weight of two linear layers": (tied_linear, 24),
    "a bias of two layers": (tied_bias, 36),
    "two sizes of one layer's images": (at_two_sizes, 148),
    "two parameters on one memory": (memory_in_common, 24),
    "a transpose": (
        graph(lambda s, x: F.linear(s.a(pooled(x)), s.a.weight.t()), a=lambda: nn.Linear(4, 3)),
        15,
    ),
    "a view": (
        graph(lambda s, x: F.linear(pooled(s.a(x)), s.a.weight.view(4, 4)), a=conv),
        20,
    ),
    "two halves": (
        graph(
            lambda s, x: F.conv2d(x, s.a.weight[:2]) + F.conv2d(x, s.a.weight[2:]),
            a=lambda: conv(bias=False),
        ),
        16,
    ),
    "a half, then the whole": (
        graph(
            lambda s, x: F.conv2d(x, s.a.weight[:2]).sum(1, True) + s.a(x),
            a=lambda: conv(bias=False),
        ),
        16,
    ),
    "three thirds": (attention, 64),
    "a scale": (graph(lambda s, x: F.relu(x * s.g) * s.g, g=scale), 4),
    "a scale and what is made of it": (graph(lambda s, x: F.relu(x * s.g) * s.g.exp(), g=scale), 8),
    "standardized weights": (standardized_twice, 148),
    "weights with a norm": (weight_norm_twice, 20),
    "weights with a norm by hooks": (weight_norm_by_hooks, 20),
}


class Held(nn.Module):
    """A tensor that no optimizer trains: a buffer, an attribute, in a list, or of the module."""

    def __init__(self, how: str, values: torch.Tensor, function):
        super().__init__()
        self.how, self.function = how, function
        if how == "parameter":
            self.values = nn.Parameter(values, requires_grad=False)
        elif how == "buffer":
            self.register_buffer("values", values)
        elif how == "list":
            self.listed = {"all": [values]}
        elif how == "attribute":
            self.values = values

    def forward(self, x):
        return self.function(x, GLOBAL if self.how == "global" else self._held())

    def _held(self):
        return self.listed["all"][0] if self.how == "list" else self.values


GLOBAL = torch.arange(1.0, 5.0)
USES = {
    "scale": (lambda x, v: x * v[:, None, None], 4),
    "sum": (lambda x, v: x + v.view(4, 1, 1), 4),
    "twice": (lambda x, v: F.relu(x * v[:, None, None]) * v[:, None, None], 4),
    "kernel": (lambda x, v: F.conv2d(x, v.view(4, 1, 1, 1), groups=4), 4),
    "kernel, changed": (lambda x, v: F.conv2d(x, (v / 3)[:, None, None, None], groups=4), 4),
    "bias": (lambda x, v: F.conv2d(x, torch.ones(4, 1, 1, 1), v, groups=4), 8),
    "channels": (lambda x, v: torch.cat([x, v.view(1, 4, 1, 1).expand(1, 4, 6, 6)], 1), 4),
    "choice": (lambda x, v: torch.where(x > 0, x, v[:, None, None]), 4),
    "group norm": (lambda x, v: F.group_norm(x, 2, v), 4),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", ["parameter", "buffer", "list", "attribute", "global"])
def test_what_inference_needs_is_stored_whoever_holds_it(how, use):
    function, params = USES[use]
    network = Held(how, GLOBAL.clone(), function)
    assert stored(network) == [params, params]
    assert not hasattr(GLOBAL, "_scoring_tag")
    result = score(network, (4, 6, 6))
    assert result.trace.followed and "matmul" not in {r.kind for r in result.records}


@pytest.mark.parametrize("how", ["parameter", "buffer", "list", "attribute"])
def test_attributes_of_code_that_needs_an_image(how):
    def run(x, v):
        return x * v[:, None, None] if float(x.sum()) < 1 else x

    assert stored(Held(how, GLOBAL.clone(), run)) == [4, 4]


@pytest.mark.parametrize("how", ["parameter", "buffer", "attribute"])
@pytest.mark.parametrize("values", [torch.arange(1, 5) > 0, torch.arange(1, 5)])
def test_masks_and_whole_numbers(how, values):
    scaled = Held(how, values, lambda x, v: F.conv2d(x, torch.ones(4, 4, 1, 1)) * v[:, None, None])
    assert stored(scaled) == [20, 20]
    assert score(scaled, (4, 6, 6)).zeros == 0


@pytest.mark.parametrize("how", ["parameter", "buffer", "attribute"])
def test_an_order_of_channels_is_part_of_the_code(how):
    assert stored(Held(how, torch.tensor([3, 1, 0, 2]), lambda x, v: x[:, v])) == [0, 0]


def test_a_frozen_batchnorm_is_a_scale_and_a_shift():
    network = nn.Sequential(conv(), FrozenBatchNorm2d(4))
    assert stored(network) == [28, 28]


@pytest.mark.parametrize("case", CASES)
def test_parameters(case):
    torch.manual_seed(0)
    make, params = CASES[case]
    assert stored(make()) == [params, params]


def batchnorms(function, **more) -> nn.Module:
    parts = {"a": conv(bias=False), "b": conv(bias=False), "n": nn.BatchNorm2d(4)}
    return Graph(function, **parts, **more)


@pytest.mark.parametrize(
    ("function", "published", "strict"),
    [
        (lambda s, x: s.n(s.b(s.n(s.a(x)))), 36, 36),  # folds into both, with the same shift
        (lambda s, x: s.n(F.relu(s.n(x))), 4, 8),  # scale and shift, once
        (lambda s, x: s.n(s.a(F.relu(s.n(s.a(x))))), 20, 20),  # both layers shared
        (lambda s, x: s.m(s.a(F.relu(s.n(s.a(x))))), 24, 32),  # one weight cannot take two scales
        (lambda s, x: s.n(s.a(F.relu(s.a(x)))), 20, 24),  # nor one that is used without it
    ],
)
def test_a_shared_batchnorm(function, published, strict):
    torch.manual_seed(0)
    network = batchnorms(function, m=nn.BatchNorm2d(4))
    for norm in (network.n, network.m):
        nn.init.uniform_(norm.running_mean)
    assert stored(network) == [published, strict]


def narrow(norm: nn.BatchNorm2d, part: slice, x):
    tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return F.batch_norm(x, *(tensor[part] for tensor in tensors))


@pytest.mark.parametrize(
    ("weights", "norms", "strict"),
    [
        (slice(2), slice(2), 20),  # a slimmable network: each filter with its own scale
        (slice(2, 4), slice(2, 4), 20),
        (slice(2), slice(2, 4), 24),  # one filter cannot take two scales: these stay apart
    ],
)
def test_a_slice_of_a_batchnorm(weights, norms, strict):
    torch.manual_seed(0)

    def run(s, x):
        wide = narrow(s.n, slice(4), F.conv2d(x, s.a.weight))
        return torch.cat([wide, narrow(s.n, norms, F.conv2d(x, s.a.weight[weights]))], 1)

    network = Graph(run, a=conv(bias=False), n=nn.BatchNorm2d(4))
    nn.init.uniform_(network.n.running_mean)
    assert stored(network)[1] == strict


def test_the_first_layer_folds_as_any_other():
    """A shared bias is another number behind another BatchNorm."""
    torch.manual_seed(0)

    def run(s, x):
        return s.n(F.conv2d(x, s.a.weight, s.a.bias)) + s.m(F.conv2d(x, s.b.weight, s.a.bias))

    network = Graph(run, a=conv(), b=conv(bias=False), n=nn.BatchNorm2d(4), m=nn.BatchNorm2d(4))
    assert stored(network)[1] == 32 + 8


def test_a_scale_that_cannot_fold_is_computed():
    network = batchnorms(lambda s, x: s.m(s.a(F.relu(s.n(s.a(x))))), m=nn.BatchNorm2d(4))
    result = score(network.eval(), (4, 6, 6), settings=FP32)
    counts = dict(zip((r.name for r in result.records), result.counts["strict"], strict=True))
    assert [counts[n].mults for n in "nm"] == [144, 144]


def test_what_one_use_needs_and_another_does_not_is_stored():
    """The first use sees a channel that is always 0."""
    torch.manual_seed(0)
    network = Graph(lambda s, x: s.a(s.z(x)) + s.a(x), a=conv(bias=False), z=conv(bias=False))
    network.z.weight.data[1] = 0
    _, strict = stored(network)
    assert strict == 12 + 16 + 2 * 4 / 32  # and a mark for each channel of a side that loses some


def pruned(*, permanent: bool) -> nn.Module:
    torch.manual_seed(0)
    network = build(MICRONET)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount=0.5)
            if permanent:
                prune.remove(module, "weight")
    return network


def test_masks_of_pruning_count_as_the_zeros_that_they_make():
    hooked, plain = pruned(permanent=False), pruned(permanent=True)
    layers = ((name, hooked.get_submodule(name)) for name, _ in plain.named_modules())
    held = {name: m.weight for name, m in layers if isinstance(m, nn.Conv2d | nn.Linear)}
    one, other = (score(network, (3, 32, 32)) for network in (hooked, plain))
    weights = sum(m.weight.numel() for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert one.totals == other.totals
    assert one.zeros == other.zeros
    everything = list(plain.parameters())
    zeros = sum(int((p == 0).sum()) for p in everything)
    assert one.zeros == pytest.approx(zeros / sum(p.numel() for p in everything))
    assert zeros > 0.49 * weights
    assert f"zeros: {100 * one.zeros:.2f} % of all parameters;" in report.summary(one)[0]
    # as it was: the hooks' own tensors, not those of the pass
    assert all(hooked.get_submodule(name).weight is weight for name, weight in held.items())
    assert "hooks" in thin(hooked, (3, 32, 32)).note


def test_the_summary_says_of_what_the_zeros_are_the_share():
    network = nn.Sequential(conv(4, 8, bias=False), conv(8, 4, bias=False), nn.BatchNorm2d(4))
    network[0].weight.data = torch.tensor([-0.5, 0.0, 0.0, 0.25]).repeat(8).reshape(8, 4, 1, 1)
    result = score(network.eval(), (4, 6, 6))
    assert quantized_zeros(result) == 0.5
    assert report.summary(result)[0] == (
        f"72 parameters; zeros: {100 * (16 + 4) / 72:.2f} % of all parameters, "
        "50.00 % of the quantized weights; 1 of 2 layers ternary"
    )


@torch.no_grad()
def test_zeros_of_what_is_shared_are_counted_once():
    weight = nn.Linear(4, 4, bias=False)
    weight.weight[0] = 0

    def slices(s, x):
        return torch.cat([F.linear(pooled(x), s.a.weight[:2]), s.a(pooled(x))], 1)

    assert score(Graph(slices, a=weight), (4, 6, 6)).zeros == 4 / 16
    kernel = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0]).view(1, 1, 3, 3))

    def expanded(s, x):
        return F.conv2d(x, s.k.expand(4, 1, 3, 3), groups=4)

    result = score(Graph(expanded, k=kernel), (4, 6, 6))
    assert result.zeros == pytest.approx(8 / 9)
    assert quantized_zeros(result) == pytest.approx(8 / 9)
