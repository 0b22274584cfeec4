"""The scored network in other forms: without dead channels, for other runtimes, and in C."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from model_compound_scaling.networks.registry import NetworkSpec, table_row
from model_scoring.counting.scoring import Score, score
from model_scoring.dead_channels.removal import thin
from model_scoring.export import onnx_file
from model_scoring.export.c_file import Forms, c_form, describe
from model_scoring.export.output_files import checkpoint_bytes
from model_scoring.export.thin_comparison import comparison, latencies


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    thin: Path | None
    onnx: Path | None
    opset: int
    c_source: Path | None
    latency: bool


def other_forms(
    network: nn.Module,
    spec: NetworkSpec,
    data: dict,
    before: Score,
    wanted: Wanted,
    *,
    top1: float | None,
) -> Forms:
    """What was asked for. `data` goes into each file, `before` is the network's own score, top1 its
    accuracy in percent, if known; the ONNX file has the thin network if both are asked for, C
    always."""
    network, shape, forms = network.cpu(), before.shape, Forms()
    if wanted.c_source or wanted.latency:
        described = describe(spec, data, before, top1)
        forms = c_form(network, before, described, wanted.c_source, latency=wanted.latency)
    files, lines = forms.files, forms.lines
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
    return forms
