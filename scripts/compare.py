"""One table of several scored networks:
python -m scripts.compare TITLE FILE.json [TITLE FILE.json ...]"""

import json
import sys
from pathlib import Path

from model_compound_scaling.command_line.tables import aligned


def table(scored: dict[str, dict]) -> str:
    """Aligned text; zeros are those of all parameters, costs those of the published rules."""
    rows = [(f"{'network':16}", "  top-1", "zeros of all", "  params", "      ops", "   score")]
    for title, report in scored.items():
        cost, zeros = report["published"], 100 * report["zeros"]
        size, ops = f"{cost['params'] / 1e3:.1f}K", f"{cost['ops'] / 1e6:.2f}M"
        row = (title, f"{report['top1']:.2f} %", f"{zeros:.2f} %", size, ops)
        rows.append((*row, f"{cost['score']:.5f}"))
    return "\n".join(aligned(rows))


if __name__ == "__main__":
    titles, files = sys.argv[1::2], sys.argv[2::2]
    reports = (json.loads(Path(file).read_text()) for file in files)
    print(table(dict(zip(titles, reports, strict=True))))
