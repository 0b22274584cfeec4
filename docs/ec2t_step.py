"""One assignment of EC2T, drawn: the cost of each code, and where a layer's weights go.

python docs/ec2t_step.py CHECKPOINT LAYER.weight PICTURE.png
"""

import sys
from pathlib import Path

import matplotlib
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from model_compound_scaling.checkpoints.network_checkpoint import read_checkpoint
from model_quantization.ec2t.assignment import (
    assign,
    find_thresholds,
    largest_lambda,
    probabilities,
    shares,
    statistics,
)
from model_quantization.ec2t.flat_layers import Segments

SCALE = 0.3  # --ini-c-divrs
STRENGTHS = {0.0: "to the nearest centroid", 0.2: "entropy-constrained"}  # --lambda-max-divrs
CODES = (("$w_p$", "tab:blue"), ("$w_n$", "tab:red"), ("0", "grey"))


def draw(weights: Tensor, gamma: float, costs: Axes, histogram: Axes) -> None:
    """Both panels of one strength gamma, for the weights (n,) of a layer."""
    segments = Segments([len(weights)], weights)
    latent = segments.join([weights])
    stats = statistics(latent, segments)
    centroids = SCALE * torch.stack([stats.high, -stats.low])
    nearest = shares(assign(latent, centroids / 2, segments), segments)
    information = -probabilities(nearest, segments.counts).log2()
    lam = gamma * largest_lambda(centroids, information, stats)  # of the only layer: delta is 1
    thresholds = find_thresholds(centroids, lam, information)
    found = shares(assign(latent, thresholds, segments), segments).flatten()

    (w_p, w_n), (high, low) = centroids.flatten().tolist(), thresholds.flatten().tolist()
    end = 2.6 * max(w_p, w_n)
    x = torch.linspace(-end, end, 121)
    parts = (weights > high, weights <= -low, (weights <= high) & (weights > -low))
    for i, value in enumerate((w_p, -w_n, 0.0)):
        name, colour = CODES[i]
        # less what all three have in common, lambda I_0
        cost = (x - value) ** 2 + lam * (information[i] - information[2])
        costs.plot(x, cost, color=colour, label=f"cost of {name}")
        histogram.axvline(value, color=colour, linewidth=2)
    histogram.hist(
        [weights[part].numpy() for part in parts],
        bins=x.tolist(),
        stacked=True,
        color=[colour for _, colour in CODES],
        alpha=0.6,
        label=[f"{100 * found[i]:.0f} % become {name}" for i, (name, _) in enumerate(CODES)],
    )
    for axis in (costs, histogram):
        for threshold in (high, -low):
            axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
    costs.set(title=f"$\\gamma$ = {gamma:g}: {STRENGTHS[gamma]}", xlim=(-end, end))


def main(checkpoint: str, layer: str, picture: str) -> None:
    weights = read_checkpoint(Path(checkpoint)).state[layer].flatten()
    options = {"figsize": (9, 5.6), "layout": "constrained", "sharex": True, "sharey": "row"}
    figure, axes = plt.subplots(2, 2, **options)
    for gamma, (costs, histogram) in zip(STRENGTHS, axes.T, strict=True):
        draw(weights, gamma, costs, histogram)
    top = float(weights.abs().max()) * SCALE
    axes[0, 0].set(ylim=(0, 3 * top**2), ylabel="$(W - w_c)^2 + \\lambda\\,(I_c - I_0)$")
    axes[1, 0].set(ylabel="number of weights", ylim=(0, 1.4 * axes[1, 0].get_ylim()[1]))
    for axis in axes.flat:
        axis.legend(fontsize="small", loc="upper right", framealpha=1)
    for axis in axes[1]:
        axis.set_xlabel("latent weight W")
    figure.suptitle(f"{layer}; solid: centroids, dashed: thresholds")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
