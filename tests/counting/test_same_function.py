"""The same function costs the same, however it is written: whole networks under both rule sets."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_scoring.counting.scoring import score
from model_scoring.counting.settings import RULE_SETS, Settings
from model_scoring.tracing.operation_kinds import multiplications

FP32 = Settings(32, 32, 32, tree_adder=False)
Costs = tuple[float, float, float]


class Call(nn.Module):
    """A network made of a function of the image, and of a layer if there is one."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def costs(network: nn.Module, shape=(8, 6, 6)) -> Costs:
    """Parameters, additions and multiplications, which both rule sets have to agree on."""
    result = score(network.eval(), shape, settings=FP32)
    assert not result.trace.unknown
    found = [(t.params, t.adds, t.mults) for t in (result.totals[r] for r in RULE_SETS)]
    assert found[0] == found[1]
    return found[0]


N = 8 * 36
FORMS = {
    "relu": [
        (0, N),
        F.relu,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        lambda x: x.clone().relu_(),
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(min=0, input=x),
        lambda x: x.clamp_min(0),
        lambda x: x.clone().clamp_(min=0),
        lambda x: torch.clip(x, 0),
        lambda x: torch.maximum(x, torch.tensor(0.0)),
        lambda x: torch.maximum(torch.zeros_like(x), x),
        lambda x: torch.max(x, x.new_zeros(1)),
        lambda x: F.threshold(x, 0, 0),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: x * (x > 0),
        lambda x: (x > 0).float() * x,
        lambda x: x.clamp(0, float("inf")),
        lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(float("inf"))),
        lambda x: F.hardtanh(x, 0, float("inf")),
        lambda x: F.relu(x).clamp_min(-float("inf")),
        lambda x: F.leaky_relu(x, 0.0),
        lambda x: F.rrelu(x, 0.0, 0.0),
        lambda x: F.hardtanh(x, -float("inf"), 1),
    ],
    "nothing": [
        (0, 0),
        lambda x: x + 0,
        lambda x: 0 + x,
        lambda x: sum([x]),
        lambda x: x - 0.0,
        lambda x: 0 - x,
        lambda x: torch.rsub(x, 0),
        lambda x: torch.zeros_like(x) + x,
        lambda x: torch.zeros_like(x).add_(x),
        lambda x: x + torch.zeros(8, 1, 1),
        lambda x: x.clone().sub_(torch.tensor(0.0)),
        lambda x: x * 1,
        lambda x: 1.0 * x,
        lambda x: x * torch.ones_like(x),
        lambda x: x * -1,
        lambda x: x / 1,
        lambda x: x.clone().div_(-1),
        lambda x: -x,
        lambda x: x**1,
        lambda x: x.clamp(-float("inf"), float("inf")),
        lambda x: F.leaky_relu(x, 1.0),
    ],
    "sum": [
        (N, N),
        lambda x: x + F.relu(x),
        lambda x: sum([x, F.relu(x)]),
        lambda x: torch.stack([x, F.relu(x)]).sum(0),
        lambda x: torch.zeros_like(x).add_(x).add_(F.relu(x)),
    ],
    "floor": [(0, 2 * N), lambda x: F.relu(x).div(1, rounding_mode="floor")],
    "relu6": [
        (0, 2 * N),
        F.relu6,
        lambda x: F.hardtanh(x, 0, 6),
        lambda x: x.clamp(0, 6),
        lambda x: torch.clamp(x, max=6, min=0),
        lambda x: F.relu(x).clamp(max=6),
        lambda x: torch.minimum(F.relu(x), torch.tensor(6.0)),
        lambda x: x.clamp_min(0).clamp_max(6),
    ],
    "hardswish": [
        (N, 4 * N),
        F.hardswish,
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * F.hardsigmoid(x),
        lambda x: x * ((x + 3).clamp(0, 6) / 6),
    ],
    "hardsigmoid": [(N, 3 * N), F.hardsigmoid, lambda x: F.relu6(x + 3) / 6],
    "swish": [
        (N, 3 * N),
        F.silu,
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x).mul_(x),
        lambda x: x * (1 / (1 + torch.exp(-x))),
    ],
    "sigmoid": [
        (N, 2 * N),
        torch.sigmoid,
        lambda x: 1 / (1 + torch.exp(-x)),
        lambda x: (1 + (-x).exp()).reciprocal(),
    ],
    "gelu": [(N, 4 * N), F.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))],
    "softplus": [
        (N, 2 * N),
        F.softplus,
        lambda x: torch.log(1 + x.exp()),
        lambda x: torch.log1p(x.exp()),
    ],
    "mish": [(3 * N, 6 * N), F.mish, lambda x: x * torch.tanh(F.softplus(x))],
    "average": [
        (35 * 8, 8),
        lambda x: x.mean((2, 3)),
        lambda x: torch.mean(dim=(2, 3), input=x),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.avg_pool2d(x, 6),
        lambda x: F.avg_pool2d(kernel_size=x.shape[2:], input=x),
        lambda x: x.flatten(2).mean(-1),
        lambda x: x.sum((2, 3)) / 36,
    ],
    "largest": [
        (0, 35 * 8),
        lambda x: x.amax((2, 3)),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.max_pool2d(x, 6),
        lambda x: x.flatten(2).max(dim=2).values,
    ],
    "root": [(0, N), torch.sqrt, lambda x: x**0.5],
    "inverse root": [
        (0, 2 * N),
        torch.rsqrt,
        lambda x: 1 / torch.sqrt(x),
        lambda x: x**-0.5,
        lambda x: x.sqrt().reciprocal(),
    ],
    "square": [(0, N), torch.square, lambda x: x * x, lambda x: x.pow(2)],
    "cube": [(0, 2 * N), lambda x: x**3, lambda x: x * x * x],
    "difference": [
        (N, N),
        lambda x: x - F.relu(x),
        lambda x: torch.subtract(x, F.relu(x)),
        lambda x: torch.add(x, F.relu(x), alpha=-1),
        lambda x: x + (-F.relu(x)),
    ],
    "weighted sum": [
        (N, 2 * N),
        lambda x: x + 2 * F.relu(x),
        lambda x: torch.add(x, F.relu(x), alpha=2),
        lambda x: torch.add(alpha=2, other=F.relu(x), input=x),
        lambda x: torch.add(x, F.relu(x), alpha=2, out=torch.empty_like(x)),
    ],
    "product and sum": [
        (N, 2 * N),
        lambda x: x + F.relu(x) * x,
        lambda x: torch.addcmul(x, F.relu(x), x),
        lambda x: x.clone().addcmul_(F.relu(x), x),
        lambda x: x + torch.addcmul(torch.zeros_like(x), F.relu(x), x),
        lambda x: torch.add(F.relu(x) * x, x, alpha=1),
    ],
    "scaled": [
        (0, N),
        lambda x: 2 * x,
        lambda x: torch.add(torch.zeros_like(x), x, alpha=2),
        lambda x: torch.rsub(x, 0, alpha=2),
    ],
    "quotient": [
        (0, N),
        lambda x: x / 3,
        lambda x: x * (1 / 3),
        lambda x: x.clone().div_(3),
        lambda x: torch.mul(x, 3, out=torch.empty_like(x)),
    ],
    "order": [
        (0, N),
        lambda x: F.relu(x.flatten(1)),
        lambda x: F.relu(x.view(x.size(0), -1)),
        lambda x: F.relu(torch.reshape(shape=(1, -1), input=x)),
    ],
    "length": [(7 * 36, 9 * 36), lambda x: x.pow(2).sum(1).sqrt(), lambda x: x.norm(dim=1)],
}


@pytest.mark.parametrize("name", FORMS)
def test_without_weights(name):
    expected, *forms = FORMS[name]
    for form in forms:
        assert costs(Call(form)) == (0, *expected), form


LAYER_FORMS = [
    lambda s, x: F.conv2d(x, s.weight[:, :, None, None], s.bias),
    lambda s, x: F.conv2d(weight=s.weight[:, :, None, None], bias=s.bias, input=x),
    lambda s, x: torch.conv2d(x, bias=s.bias, weight=s.weight.view(5, 8, 1, 1)),
    lambda s, x: F.conv1d(x.flatten(2), s.weight[:, :, None], s.bias),
    lambda s, x: s(x.permute(0, 2, 3, 1)),
    lambda s, x: F.linear(bias=s.bias, weight=s.weight, input=x.permute(0, 2, 3, 1)),
    lambda s, x: torch.einsum("nchw,oc->nohw", x, s.weight) + s.bias[:, None, None],
    lambda s, x: torch.einsum("oc,nchw->nohw", s.weight, x) + s.bias[:, None, None],
    lambda s, x: torch.tensordot(x, s.weight, dims=([1], [1])) + s.bias,
    lambda s, x: x.flatten(2).mT @ s.weight.t() + s.bias,
    lambda s, x: s.weight @ x.flatten(2) + s.bias[:, None],
    lambda s, x: s.weight @ F.unfold(x, 1) + s.bias[:, None],
    lambda s, x: torch.addmm(s.bias, x.flatten(2)[0].t(), s.weight.t()),
    lambda s, x: torch.addmm(s.bias[:, None], s.weight, x.flatten(2)[0]),
    lambda s, x: torch.addmm(mat2=s.weight.t(), mat1=x.flatten(2)[0].t(), input=s.bias),
    lambda s, x: torch.addmm(s.bias, x.flatten(2)[0].t(), s.weight.t(), alpha=2, beta=3),
    lambda s, x: torch.baddbmm(s.bias, x.flatten(2).mT, s.weight.t()[None]),
    lambda s, x: torch.baddbmm(s.bias[None, :, None], s.weight[None], x.flatten(2)),
]


@pytest.mark.parametrize("form", range(len(LAYER_FORMS)))
@pytest.mark.parametrize("dead", [False, True])
def test_a_pointwise_convolution(form, dead):
    """Also where two inputs are not read, which the published rules for linear layers store."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(8, 5, 1), nn.Linear(8, 5)
    found = []
    for layer, function in ((convolution, lambda s, x: s(x)), (linear, LAYER_FORMS[form])):
        if dead:
            layer.weight.data[:, [1, 6]] = 0
        result = score(Call(function, layer).eval(), (8, 6, 6), settings=FP32)
        found.append([(t.params, t.adds, t.mults) for t in result.totals.values()])
    if not dead:
        assert found[0] == found[1] == [(45, 40 * 36, 40 * 36)] * 2
    else:
        assert found[0][1] == found[1][1] == (35 + 8 / 32, 30 * 36, 30 * 36)


@pytest.mark.parametrize(
    "form",
    [
        lambda s, x: s(x.mean((2, 3))),
        lambda s, x: s(x.mean((2, 3))[0]),
        lambda s, x: torch.mv(s.weight, x.mean((2, 3))[0]) + s.bias,
        lambda s, x: torch.addmv(s.bias, s.weight, x.mean((2, 3))[0]),
        lambda s, x: x.mean((2, 3)) @ s.weight.t() + s.bias,
    ],
)
def test_a_linear_layer(form):
    assert costs(Call(form, nn.Linear(8, 5))) == (45, 35 * 8 + 40, 8 + 40)


def test_an_added_image_costs_additions():
    """Beside the products: beta and alpha, each a product an element."""
    weight = nn.Linear(8, 5, bias=False)
    outputs, pool = 5, (35 * 8, 8)

    def network(**scalars):
        def run(s, x):
            y = x.mean((2, 3))
            return torch.addmm(y[:, :5], y, s.weight.t(), **scalars)

        return Call(run, weight)

    products = 40, pool[0] + 7 * outputs + outputs, pool[1] + 40
    assert costs(network()) == products
    scaled = (*products[:2], products[2] + outputs)
    assert costs(network(beta=0.5, alpha=2)) == scaled  # alpha is part of the weights
    assert costs(network(beta=0)) == (40, products[1] - outputs, products[2])

    def batches(s, x):
        return torch.baddbmm(x[0], x[0], x[0], beta=0.5)

    assert costs(Call(batches, weight), (8, 6, 6)) == (0, N * 5 + N, N * 6 + N)


def test_weights_from_the_image_are_products():
    """A hypernetwork: as many products as a dense convolution, and nothing stored for them."""

    def run(s, x):
        weight = s(x.mean((2, 3))).view(4, 8, 1, 1)
        return F.conv2d(weight=weight, input=x)

    pool, made, outputs = (35 * 8, 8), 32 * 8, 4 * 36
    adds = pool[0] + made + outputs * 7
    assert costs(Call(run, nn.Linear(8, 32))) == (32 * 9, adds, pool[1] + made + outputs * 8)


BY_IMAGE = {
    "group norm": nn.GroupNorm(8, 8),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "BatchNorm without statistics": nn.BatchNorm2d(8, track_running_stats=False),
    "as in training": lambda n, x: F.batch_norm(
        x, n.running_mean, n.running_var, n.weight, n.bias, training=True
    ),
    "F.instance_norm": lambda n, x: F.instance_norm(x, weight=n.weight, bias=n.bias),
    "with statistics, not used": lambda n, x: F.instance_norm(
        x, n.running_mean, n.running_var, n.weight, n.bias, use_input_stats=True
    ),
}


@pytest.mark.parametrize("name", BY_IMAGE)
def test_statistics_of_the_image_never_fold(name):
    form, conv = BY_IMAGE[name], nn.Conv2d(3, 8, 3, padding=1, bias=False)
    norm = form if isinstance(form, nn.Module) else Call(form, nn.BatchNorm2d(8))
    layer = 8 * 27, 8 * 26 * 64, 8 * 27 * 64
    found = costs(nn.Sequential(conv, norm), (3, 8, 8))
    assert tuple(a - b for a, b in zip(found, layer, strict=True)) == (16, 2048, 1536)


def test_stored_statistics_fold_in_every_form():
    forms = [
        lambda n, x: n(x),
        lambda n, x: F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias),
        lambda n, x: F.instance_norm(
            x, n.running_mean, n.running_var, n.weight, n.bias, use_input_stats=False
        ),
    ]
    conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    found = {costs(nn.Sequential(conv, Call(form, norm)), (3, 8, 8)) for form in forms}
    assert found == {(8 * 28, 8 * 27 * 64, 8 * 27 * 64)}


@pytest.mark.parametrize("which", ["scale and shift", "mean"])
def test_a_batchnorm_that_the_image_decides_on(which):
    """One product and one sum an element, and whatever else is stored."""

    def run(n, x):
        y = x.mean((0, 2, 3))
        if which == "mean":
            return F.batch_norm(x, y, n.running_var, n.weight, n.bias)
        return F.batch_norm(x, n.running_mean, n.running_var, y, y)

    stored = {"scale and shift": 16, "mean": 24}[which]
    assert costs(Call(run, nn.BatchNorm2d(8))) == (stored, 35 * 8 + N, 8 + N)


def test_powers():
    by_hand = {1: 0, 2: 1, 3: 2, 4: 2, 7: 4, 8: 3, 0.5: 1, 1.5: 2, -1: 1, -2: 2, -0.5: 2}
    assert {n: multiplications(n) for n in by_hand} == by_hand
    assert multiplications(0.3) == multiplications(2.5) == 1
