"""Going on from a checkpoint of stage 2: of the same run, or with the network of another."""

from pathlib import Path

import torch
from torch import Tensor, nn

from data import UserError
from model_compound_scaling.checkpoints.atomic_save import read_file
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.networks.few_values import few_values
from model_compound_scaling.runs import Run
from model_quantization import activation_bits
from model_quantization.ec2t.ternarizer import Ternarizer


def require_continuable(state: dict, *, names: list[str], levels: int, epochs: int) -> None:
    """UserError or CheckpointError for a checkpoint of other layers or levels, or one whose codes
    were frozen too early."""
    saved, old = state["resume"], state["config"]
    layers = saved.get("ternarizer")
    layers = layers.keys() if isinstance(layers, dict) else set()
    if other := sorted(layers ^ set(names)):
        raise CheckpointError(
            f"other layers are quantized in the checkpoint than in this run, first {other[0]}: "
            "leave --ternarize as it was, or start over with --no-resume"
        )
    if old.get("levels", levels) != levels:
        raise CheckpointError(
            f"the checkpoint's layers have {old['levels']} levels: leave --levels as it was, or "
            "start over with --no-resume"
        )
    done = state["history"][-1]["epoch"] if state["history"] else 0
    if saved.get("phase") == "frozen" and done < epochs:
        raise UserError(
            f"--epochs {epochs}: the codes were frozen before so many epochs; keep "
            "--epochs, and raise --retrain-epochs to go on, or start over with --no-resume"
        )


def warm_start(path: Path, network: nn.Module, ternarizer: Ternarizer, run: Run) -> None:
    """Begin with latents, centroids and other weights of another run's `last.pt`."""
    state = read_file(path)
    activation_bits.adopt(network, state)
    network.load_state_dict(state["state_dict"])
    ternarizer.load_state_dict(state["resume"]["ternarizer"])
    ternarizer.set_gamma(ternarizer.gamma)
    run.log(f"starting from {path.parent.name}")


def codes_to_keep(network: nn.Module, names: list[str], levels: int) -> dict[str, Tensor]:
    """Copies of those weights that are quantized already, with no more values than there are
    levels on either side of 0."""
    found = {name: network.get_parameter(name).detach() for name in names}
    values = {name: few_values(weight, levels) for name, weight in found.items()}
    most = levels // 2

    def fits(v: Tensor | None) -> bool:
        return v is not None and bool((v > 0).sum() <= most and (v < 0).sum() <= most)

    return {name: found[name].clone() for name, v in values.items() if fits(v)}


@torch.no_grad()
def put_back(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """The reverse, after a ternarizer has begun, which then freezes these codes."""
    for name, weight in weights.items():
        network.get_parameter(name).copy_(weight)
