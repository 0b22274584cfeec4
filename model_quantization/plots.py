"""Thesis figure 5.2: how each layer's weights became ternary."""

from pathlib import Path

import numpy as np

from model_compound_scaling.checkpoints.atomic_save import read_file
from model_compound_scaling.machine.log import Log
from model_compound_scaling.runs.history import History
from model_quantization.grid import Row


def plot_ternarization(run: History) -> None:
    """One PNG per layer in the run's folder: latent weights and centroids at the end, centroids,
    and entropy, zeros and accuracy over the epochs."""
    layers = read_file(run.folder / "last.pt")["resume"]["ternarizer"]
    top1, folder = [figures["val_top1"] for figures in run.epochs], run.folder / "ternarization"
    folder.mkdir(exist_ok=True)
    for i, (name, layer) in enumerate(layers.items()):
        epochs = [figures["layers"][i] for figures in run.epochs]
        _draw(epochs, top1, layer["latent"].cpu().numpy(), folder / f"{name}.png")
    Log(run.folder)(f"{len(layers)} plots in {folder}")


def plot_pareto(results: list[Row], path: Path, chosen: int | None = None) -> None:
    """Accuracy over zeros of the quantized weights, as thesis figure 5.3; a star is the choice."""
    from matplotlib.figure import Figure  # an optional package, and slow to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for i in sorted(range(len(results)), key=lambda i: results[i].figures["zeros"]):
        name, best = results[i]
        label = f"{name}: {best['scoring_params']:,.0f} params"
        axis.plot(best["zeros"], best["val_top1"], "*" if i == chosen else "o", label=label)
    axis.set(xlabel="zeros, % of the quantized weights", ylabel="top-1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(epochs: list[dict], top1: list[float], latent: np.ndarray, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    last, x = epochs[-1], range(1, len(epochs) + 1)
    left.hist(latent, bins=100, color="lightgrey")
    for key, colour in (("w_p", "tab:blue"), ("w_n", "tab:red")):
        left.axvline(last[key], color=colour, label=f"{key} {last[key]:.3g}")
        middle.plot(x, [layer[key] for layer in epochs], color=colour, marker=".", label=key)
    left.set(title="last latent weights, centroids", xlabel="weight", ylabel="count")
    middle.set(title="centroids", xlabel="epoch")
    zeros = [100 * layer["zeros"] for layer in epochs]
    right.plot(x, zeros, marker=".", label="zeros of the layer, %")
    right.plot(x, top1, marker=".", label="top-1 of the network, %")
    right.set(title="zeros, accuracy, entropy", xlabel="epoch", ylim=(0, 100))
    bits = right.twinx()
    bits.plot(x, [layer["entropy"] for layer in epochs], "k.--", label="entropy, bit")
    bits.set(ylim=(0, 1.6), ylabel="bit per weight")
    for axis, place in ((left, "upper left"), (middle, "center left"), (right, "lower left")):
        axis.legend(fontsize="small", loc=place)
    bits.legend(fontsize="small", loc="lower right")
    for axis in (middle, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(last["layer"])
    figure.savefig(path, dpi=110)
