"""The scored network in C: what is said of it there, and on the terminal."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from data.errors import printable
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.counting.scoring import Score
from model_scoring.dead_channels.removal import thin
from model_scoring.export.c_source.compiling import checked, compiled
from model_scoring.export.c_source.names import NoCompiler, header_path, identifier
from model_scoring.export.c_source.source import CSource, Description, c_source
from model_scoring.export.latency import measure
from model_scoring.export.output_files import Files


@dataclass
class Forms:
    """Other forms of a network: files, what to say of them, and what JSON says."""

    files: Files = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    content: dict = field(default_factory=dict)


def describe(spec: NetworkSpec, data: dict, score: Score, top1: float | None) -> Description:
    """What a file says of a network with this score; top1 in percent, if known."""
    accuracy = f"; top-1 {top1:.2f} %" if top1 is not None else ""
    lines = (
        f"{spec.model} for {data.get('dataset', 'images')}, {spec.num_classes} classes{accuracy}",
        f"{score.parameters:,} parameters, {100 * score.zeros:.2f} % of them zero",
        *(f"{rules} rules: {total.params:,.0f} parameters, {total.ops:,.0f} operations, score "
          f"{total.score:.6f}" for rules, total in score.totals.items()),
    )  # fmt: skip
    names = tuple(map(str, data.get("class_names", ())))
    names = names if len(names) == spec.num_classes else ()
    mean, std = (tuple(data.get(key, ())) for key in ("mean", "std"))
    return Description(lines, names, mean, std)


def thin_source(network: nn.Module, score: Score, name: str, description: Description) -> CSource:
    """A scored network in C, without its dead channels. Raises UserError as `c_source` does."""
    thinned = thin(network.cpu(), score.shape).network
    return c_source(thinned, score.shape, name=name, description=description)


def c_form(
    network: nn.Module, score: Score, description: Description, path: Path | None, *, latency: bool
) -> Forms:
    """A scored network in C: source and header for the path, if there is one; where there is a
    compiler, how far its logits are from PyTorch's, and how fast it is. Raises UserError as
    `c_source` and `checked` do, NoCompiler if it is to be timed."""
    source = thin_source(network, score, identifier(path.stem) if path else "net", description)
    forms = Forms()
    if path:
        forms.files = {path: source.source.encode(), header_path(path): source.header.encode()}
    sizes = f"{source.weight_bytes:,} bytes of weights, {source.arena_bytes:,} of arena"
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = compiled(source, Path(folder))
        said = f"logits differ from PyTorch's by {checked(network, library):.1e} of the largest"
        if latency:
            forms.content["latency"], forms.lines = measure(network, library)
    except NoCompiler as error:
        if latency:
            raise
        said = f"not compiled and compared with PyTorch: {printable(error)}"
    forms.lines.insert(0, f"C: {sizes}; {said}")
    return forms
