"""Accuracy over operations of activations.csv, drawn: python docs/activations.py PICTURE.png"""

import csv
import sys
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

BESIDE = [((4, -10), "left"), ((-4, 4), "right")]  # labels take turns, so that neighbours have room

if __name__ == "__main__":
    rows = list(csv.DictReader(Path(__file__).with_name("activations.csv").open()))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(4 * len(networks), 3.7), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks)), networks, strict=True):
        for recipe in dict.fromkeys(r["recipe"] for r in rows if r["network"] == network):
            of = [r for r in rows if (r["network"], r["recipe"]) == (network, recipe)]
            of.sort(key=lambda row: float(row["strict_operations"]))
            points = [(float(r["strict_operations"]) / 1e6, float(r["top1_percent"])) for r in of]
            axes.plot(*zip(*points, strict=True), "o-", label=recipe)
            for row, point, (offset, side) in zip(of, points, cycle(BESIDE), strict=False):
                name = row["bits"] or "none"
                axes.annotate(name, point, offset, textcoords="offset points", ha=side, size=9)
        axes.set(title=network, xlabel="operations, millions (strict)", ylabel="top-1, %")
        axes.margins(x=0.2, y=0.12)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
    figure.suptitle("Activations of 2, 3, 4 and 8 bits, and in full precision")
    figure.savefig(sys.argv[1], dpi=120)
