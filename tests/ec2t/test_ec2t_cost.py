"""What a step of EC2T launches: no wait for the device, and no more for more layers."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.micronet_scaling import scaled_shape
from model_compound_scaling.networks.registry import NetworkSpec
from model_quantization.ec2t.ternarizer import Ternarizer
from model_quantization.layer_selection import ternarized_names

VIEWS = {
    f"aten.{name}"
    for name in (
        "view",
        "split_with_sizes",
        "detach",
        "select",
        "unbind",
        "slice",
        "_reshape_alias",
    )
}
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "unique", "item", "is_nonzero", "masked_select")


class Counting(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self):
        super().__init__()
        self.launched = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launched[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def launched(depth: float, **settings) -> tuple[Counter, int]:
    """Operations of one step on a MicroNet of that depth, and its number of layers."""
    shape = scaled_shape("cifar_micronet", depth=depth, width=0.5)
    network = build(NetworkSpec("cifar_micronet", 10, shape))
    names = ternarized_names(network, family="micronet")
    ternarizer = Ternarizer(network, names, initial_scale=0.3, gamma=0.15, **settings)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    with Counting() as counting:
        ternarizer.prepare_step()
        ternarizer.finish_step()
    return counting.launched, len(names)


@pytest.mark.parametrize("settings", [{}, {"prune": True}, {"ttq_threshold": 0.1}])
def test_a_step_never_waits_and_does_not_grow_with_the_layers(settings):
    few, few_layers = launched(0.3, **settings)
    many, many_layers = launched(2.0, **settings)
    assert many_layers > 4 * few_layers
    for name in many:
        assert not any(word in name for word in SYNCHRONISING), name
    work = [sum(n for name, n in c.items() if name not in VIEWS) for c in (few, many)]
    assert work[0] == work[1] < 12 * few_layers
