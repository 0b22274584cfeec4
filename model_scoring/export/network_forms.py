"""The scored network in other forms: without dead channels, for other runtimes, and in C."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.counting.scoring import Score, score
from model_scoring.dead_channels.removal import thin
from model_scoring.export import onnx_file
from model_scoring.export.c_file import c_files, describe
from model_scoring.export.output_files import Files, checkpoint_bytes
from model_scoring.export.thin_comparison import comparison, latencies


@dataclass(frozen=True)
class Wanted:
    """The files that are asked for."""

    thin: Path | None
    onnx: Path | None
    opset: int
    c_source: Path | None


def other_forms(
    network: nn.Module,
    spec: NetworkSpec,
    data: dict,
    before: Score,
    wanted: Wanted,
    *,
    top1: float | None,
) -> tuple[Files, list[str]]:
    """Files that were asked for and what to say of them. `data` goes into each, `before` is the
    network's own score, top1 its accuracy in percent, if known; the ONNX file has the thin network
    if both are asked for, C always."""
    network, shape = network.cpu(), before.shape
    files: Files = {}
    lines: list[str] = []
    if wanted.c_source:
        described = describe(spec, data, before, top1)
        files, lines = c_files(network, before, wanted.c_source, described)
    if wanted.thin:
        whole, result = network, thin(network, shape)
        network = result.network
        same = {"settings": before.settings, "reference": before.reference}
        after = score(network, shape, family=table_row(spec.model).family, **same)
        lines += ["", *comparison(before, after, latencies([whole, network], shape))]
        lines += [f"unchanged: {result.note}"] if result.note else []
        files[wanted.thin] = checkpoint_bytes(network, spec, data)
    if wanted.onnx:
        properties = {"model": spec.model, "num_classes": spec.num_classes, **data}
        exported = onnx_file.export(network, shape, opset=wanted.opset, properties=properties)
        files[wanted.onnx] = exported.content
        lines.append(
            f"ONNX opset {wanted.opset}: {len(exported.content):,} bytes, "
            f"{exported.float_bytes:,} with plain float weights; logits differ from PyTorch's by "
            f"{exported.difference:.1e} of the largest"
        )
    return files, lines
