"""One assignment of EC2T, drawn: python docs/ec2t_step.py CHECKPOINT LAYER.weight PICTURE.png"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from model_compound_scaling.checkpoints import load_network, network_spec, read_checkpoint
from model_quantization.ec2t import assignment as ec2t
from model_quantization.ec2t.flat_layers import Segments

SCALE = 0.3  # --ini-c-divrs
TITLES = {0.0: "to the nearest centroid", 0.2: "entropy-constrained"}  # by --lambda-max-divrs
NAMES, COLOURS = ("$w_p$", "$w_n$", "0"), ("tab:blue", "tab:red", "grey")


def draw(weights: Tensor, gamma: float, costs: Axes, histogram: Axes) -> None:
    """Both panels of one strength gamma, for the weights (n,) of a layer."""
    segments = Segments([len(weights)], weights)
    latent = segments.join([weights])
    stats = ec2t.statistics(latent, segments)
    centroids = SCALE * torch.stack([stats.high, -stats.low])
    nearest = ec2t.shares(ec2t.assign(latent, centroids / 2, segments), segments)
    information = -ec2t.probabilities(nearest, segments.counts).log2()
    lam = gamma * ec2t.largest_lambda(centroids, information, stats)  # of the only layer: delta 1
    high, low = ec2t.find_thresholds(centroids, lam, information).flatten().tolist()
    (w_p, w_n), end = centroids.flatten().tolist(), 2.6 * float(centroids.max())
    x = torch.linspace(-end, end, 121)
    parts = [weights[weights > high], weights[weights <= -low]]
    parts.append(weights[(weights <= high) & (weights > -low)])
    percent = [f"{100 * len(part) / len(weights):.0f} % become" for part in parts]
    shares = [f"{p} {name}" for p, name in zip(percent, NAMES, strict=True)]
    for i, value in enumerate((w_p, -w_n, 0.0)):  # less what all have in common, lambda I_0
        cost = (x - value) ** 2 + lam * (information[i] - information[2])
        costs.plot(x, cost, color=COLOURS[i], label=f"cost of {NAMES[i]}")
        histogram.axvline(value, color=COLOURS[i], linewidth=2)
    style = {"stacked": True, "color": COLOURS, "alpha": 0.6, "label": shares}
    histogram.hist([part.numpy() for part in parts], bins=x.tolist(), **style)
    for axis in (costs, histogram):
        axis.vlines([high, -low], 0, 1, "black", "--", transform=axis.get_xaxis_transform(), lw=1)
        axis.legend(fontsize="small", loc="upper right", framealpha=1)
    costs.set(title=f"$\\gamma$ = {gamma:g}: {TITLES[gamma]}", xlim=(-end, end))
    costs.set(ylim=(0, 3 * SCALE**2 * float(weights.abs().max()) ** 2))
    histogram.set(xlabel="latent weight W", ylim=(0, 1.4 * histogram.get_ylim()[1]))


if __name__ == "__main__":
    checkpoint, layer, picture = sys.argv[1:]
    opened = read_checkpoint(Path(checkpoint))
    network = load_network(opened, network_spec(opened))
    latents = network.get_parameter(layer).detach().flatten()
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for strength, pair in zip(TITLES, axes.T, strict=True):
        draw(latents, strength, *pair)
    axes[0, 0].set(ylabel="$(W - w_c)^2 + \\lambda\\,(I_c - I_0)$")
    axes[1, 0].set(ylabel="number of weights")
    figure.suptitle(f"{layer}; solid: centroids, dashed: thresholds")
    figure.savefig(picture, dpi=100)
