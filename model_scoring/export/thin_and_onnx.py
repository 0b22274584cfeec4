"""The scored network in other forms: without dead channels, and for other runtimes."""

from pathlib import Path

from torch import nn

from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.counting.scoring import Score, score
from model_scoring.dead_channels.removal import thin
from model_scoring.export import onnx_file
from model_scoring.export.output_files import Files, checkpoint_files
from model_scoring.export.thin_comparison import comparison, latencies


def thin_form(
    network: nn.Module, spec: NetworkSpec, data: dict, *, path: Path, before: Score
) -> tuple[nn.Module, Files, list[str]]:
    """The thin network, its checkpoint, and what it saves, line by line."""
    result = thin(network, before.shape)
    after = score(
        result.network,
        before.shape,
        family=table_row(spec.model).family,
        settings=before.settings,
        reference=before.reference,
    )
    times = latencies([network, result.network], before.shape)
    lines = ["", *comparison(before, after, times)]
    if result.note:
        lines.append(f"unchanged: {result.note}")
    return result.network, checkpoint_files(path, result.network, spec, data), lines


def onnx_form(
    network: nn.Module, spec: NetworkSpec, data: dict, *, path: Path, before: Score, opset: int
) -> tuple[Files, list[str]]:
    """The network as an ONNX file, and how it compares."""
    properties = {"model": spec.model, "num_classes": spec.num_classes, **data}
    exported = onnx_file.export(network, before.shape, opset=opset, properties=properties)
    line = (
        f"ONNX opset {opset}: {len(exported.content):,} bytes, {exported.float_bytes:,} with "
        f"plain float weights; logits differ from PyTorch's by {exported.difference:.1e} of the "
        "largest"
    )
    return {path: exported.content}, [line]


def other_forms(
    network: nn.Module,
    spec: NetworkSpec,
    data: dict,
    before: Score,
    *,
    thin_path: Path | None,
    onnx_path: Path | None,
    opset: int,
) -> tuple[Files, list[str]]:
    """Files that were asked for and what to say of them. `data` goes into each, `before` is the
    network's own score; the ONNX file has the thin network if both are asked for."""
    network, files, lines = network.cpu(), {}, []
    if thin_path:
        network, files, lines = thin_form(network, spec, data, path=thin_path, before=before)
    if onnx_path:
        form = onnx_form(network, spec, data, path=onnx_path, before=before, opset=opset)
        files, lines = files | form[0], lines + form[1]
    return files, lines
