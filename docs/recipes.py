"""Accuracy over zeros of recipes.csv, drawn: python docs/recipes.py PICTURE.png"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

MACHINE = "two CPU cores"
KINDS = {  # what the flags of a run contain -> its label, the first that fits
    "ttq": "TTQ, strong recipe",
    "--teacher": "EC2T, strong recipe, teacher",
    "strong": "EC2T, strong recipe",
    "": "EC2T, the thesis' recipe",
}
MARKS = dict(zip(KINDS.values(), ("s--", "^-", "o-", "v"), strict=True))


def label(flags: str) -> str:
    return next(name for part, name in KINDS.items() if part in flags)


if __name__ == "__main__":
    rows = csv.DictReader(Path(__file__).with_name("recipes.csv").open())
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["machine"] == MACHINE:
            place = float(row["zeros_percent"]), float(row["top1_percent"])
            points.setdefault(label(row["flags"]), []).append(place)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, mark in MARKS.items():
        if name in points:
            axes.plot(*zip(*sorted(points[name]), strict=True), mark, label=name)
    axes.set(xlabel="zeros, % of the quantized weights", ylabel="top-1, %")
    axes.set_title("ResNet-20, CIFAR-10 as JPEG files, 4 + 2 epochs", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(sys.argv[1], dpi=120)
