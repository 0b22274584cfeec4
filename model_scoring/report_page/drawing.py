"""matplotlib's pictures as SVG elements of a page, in the page's own colours and font."""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# colours while drawing; the page has each of them light and dark
INK, *COLOURS = (f"#0{i}0{i}0{i}" for i in range(1, 7))
PAGE_COLOURS = {INK: "currentColor"} | {c: f"var(--c{i})" for i, c in enumerate(COLOURS, 1)}
QUANTIZED, DENSE, THIRD, FOURTH, FAINT = COLOURS
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 10.5,
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.15},
    **{"axes.titlelocation": "left", "axes.titlesize": "medium", "ytick.left": False},
    **{"legend.frameon": False, "legend.handlelength": 1.4, "legend.columnspacing": 1.2},
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
# of matplotlib's output what is for whole documents, alike in all pictures, or without effect
SURPLUS = re.compile(
    r'(?<=<g) id="[^"]*"|<style.*?</style>|font-family: [^;]*; |(?<=") transform="rotate\(-0 [^"]*"'
    r"|\n\s*(?=<)",
    re.DOTALL,
)


def plain(text: object) -> str:
    """Without what is not printed: control characters, lone surrogates, reversed writing."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def draw(name: str, label: str, paint: "Callable[[Axes], None]") -> str:
    """An SVG element, always the same bytes. `name`: unique on its page; `label`: what there is to
    be seen, with the numbers, for those who do not see it."""
    import matplotlib
    from matplotlib.figure import Figure

    file, unsaid = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that only a browser's fonts have
        matplotlib.rcdefaults()  # not the user's own
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})  # ids differ between pictures
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        paint(figure.subplots())
        figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    text = SURPLUS.sub("", file.getvalue().partition("<svg")[2])
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    box, content = re.search(r'viewBox="[^"]+"', text)[0], text.partition(">")[2]
    return f'<svg role="img" aria-label="{escape(plain(label))}" {box}>{content}'
