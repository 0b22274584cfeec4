"""What find_network.sh asks and says:
python -m scripts.answer goal ACCURACY MARGIN          the accuracy that stage 1 has to reach
python -m scripts.answer check SCRIPT FLAGS            whether a stage takes these flags
python -m scripts.answer show FOLDER ACCURACY SECONDS  the answer, with what earlier starts took"""

import importlib
import json
import sys
from pathlib import Path

from model_compound_scaling.command_line.tables import aligned

FILES = ("network.pt", "network.ec2t", "network_thin.pt", "full_precision.pt", "report.html")


def goal(accuracy: str, margin: str) -> str:
    """accuracy + margin, at most 100. ValueError, with the reason, for what is no percentage."""
    values = {"--accuracy": accuracy, "--margin": margin}
    for flag, text in values.items():
        try:
            values[flag] = float(text)
        except ValueError:
            values[flag] = -1.0
        if not 0 <= values[flag] <= 100:
            raise ValueError(f"{flag} is needed, a percentage, not {text!r}")
    return f"{min(100.0, values['--accuracy'] + values['--margin']):g}"


def costs(scored: dict[str, dict]) -> list[str]:
    """A table of networks; costs are those of the published rules."""
    rows = [("network", "top-1", "zeros", "params", "operations", "score")]
    for title, report in scored.items():
        cost = report["published"]
        shares = (f"{report['top1']:.2f} %", f"{100 * report['zeros']:.2f} %")
        rows.append((title, *shares, f"{cost['params']:,.0f}", f"{cost['ops']:,.0f}",
                     f"{cost['score']:.6f}"))  # fmt: skip
    return aligned(rows)


def decided(path: Path) -> str:
    """The accuracy by which the network was chosen, and on which images."""
    from model_compound_scaling.checkpoints import read_checkpoint  # loads torch

    checkpoint = read_checkpoint(path)
    images = "the validation images"
    if share := checkpoint.data.get("holdout"):
        images = f"the {share:g} % of the training images that were held out"
    return f"{checkpoint.content['figures']['val_top1']:.2f} % on {images}, which decided"


def show(folder: Path, accuracy: float, seconds: int) -> list[str]:
    """The answer, line by line."""
    titles = {"full precision": "full_precision", "found": "network"}
    scored = {t: json.loads((folder / f"{name}.json").read_text()) for t, name in titles.items()}
    earlier = folder / "seconds.txt"
    if earlier.exists():
        seconds += sum(map(int, earlier.read_text().split()))
    files = [folder / name for name in FILES if (folder / name).exists()]
    rows = [("file", "bytes"), *((str(f), f"{f.stat().st_size:,}") for f in files)]
    spent = f"{seconds // 3600} h {seconds // 60 % 60} min {seconds % 60} s in all"
    table = ["top-1 in the table: validation images, in 16 bit, measured at the end"]
    asked = f"asked for {accuracy:g} % top-1: {decided(folder / 'network.pt')}"
    return [*costs(scored), *table, "", *aligned(rows), "", asked, spent]


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "check":  # before the first stage trains for hours
        importlib.import_module(given[0]).build_parser().parse_args(given[1:])
    elif what == "goal":
        try:
            print(goal(*given))
        except ValueError as error:
            sys.exit(f"find_network.sh: error: {error}")
    else:
        print("\n".join(show(Path(given[0]), float(given[1]), int(given[2]))))
