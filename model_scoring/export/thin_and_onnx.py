"""The scored network in other forms: without dead channels, and for other runtimes."""

from pathlib import Path

from torch import nn

from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.counting.scoring import Score, score
from model_scoring.dead_channels.removal import thin
from model_scoring.export import onnx_file
from model_scoring.export.output_files import Files, checkpoint_bytes
from model_scoring.export.thin_comparison import comparison, latencies


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
    network, shape = network.cpu(), before.shape
    files: Files = {}
    lines: list[str] = []
    if thin_path:
        whole, result = network, thin(network, shape)
        network = result.network
        same = {"settings": before.settings, "reference": before.reference}
        after = score(network, shape, family=table_row(spec.model).family, **same)
        lines += ["", *comparison(before, after, latencies([whole, network], shape))]
        lines += [f"unchanged: {result.note}"] if result.note else []
        files[thin_path] = checkpoint_bytes(network, spec, data)
    if onnx_path:
        properties = {"model": spec.model, "num_classes": spec.num_classes, **data}
        exported = onnx_file.export(network, shape, opset=opset, properties=properties)
        files[onnx_path] = exported.content
        lines.append(
            f"ONNX opset {opset}: {len(exported.content):,} bytes, {exported.float_bytes:,} with "
            f"plain float weights; logits differ from PyTorch's by {exported.difference:.1e} of "
            "the largest"
        )
    return files, lines
