"""One table of several scored networks: compare.py TITLE FILE.json [TITLE FILE.json ...]."""

import json
import sys
from pathlib import Path


def table(scored: dict[str, dict]) -> str:
    """Aligned text; costs are those of the published rules."""
    lines = [f"{'network':16} {'top-1':>8} {'zeros':>8} {'params':>9} {'ops':>10} {'score':>9}"]
    for title, report in scored.items():
        cost = report["published"]
        lines.append(
            f"{title:16} {report['top1']:6.2f} % {100 * report['zeros']:6.2f} % "
            f"{cost['params'] / 1e3:8.1f}K {cost['ops'] / 1e6:9.2f}M {cost['score']:9.5f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    titles, files = sys.argv[1::2], sys.argv[2::2]
    reports = (json.loads(Path(file).read_text()) for file in files)
    print(table(dict(zip(titles, reports, strict=True))))
