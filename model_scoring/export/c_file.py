"""The scored network in C: what is said of it there, and on the terminal."""

from pathlib import Path

from torch import nn

from data.errors import printable
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.counting.scoring import Score
from model_scoring.dead_channels.removal import thin
from model_scoring.export.c_source.compiling import NoCompiler, checked
from model_scoring.export.c_source.names import header_path, identifier
from model_scoring.export.c_source.source import CSource, Description, c_source
from model_scoring.export.output_files import Files


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


def c_files(
    network: nn.Module, score: Score, path: Path, description: Description
) -> tuple[Files, list[str]]:
    """Source and header of a scored network, and what to say of them: where there is a compiler,
    how far its logits are from PyTorch's. Raises UserError as `c_source` and `checked` do."""
    source = thin_source(network, score, identifier(path.stem), description)
    files = {path: source.source.encode(), header_path(path): source.header.encode()}
    sizes = f"{source.weight_bytes:,} bytes of weights, {source.arena_bytes:,} of arena"
    try:
        deviation = checked(network, source)
        lines = [f"C: {sizes}; logits differ from PyTorch's by {deviation:.1e} of the largest"]
    except NoCompiler as error:
        lines = [f"C: {sizes}; not compiled and compared with PyTorch: {printable(error)}"]
    return files, lines
