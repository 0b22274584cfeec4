"""ONNX files whose layers of few values are stored as codes and a codebook.

The codes of a ternary layer take 2 bits, unpacked when the file is loaded: Cast, then Gather from
the layer's values. What is computed afterwards is the same graph with the same floats. BatchNorm
stays apart: folded into a ternary layer, it would give every filter three values of its own.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UserError
from model_compound_scaling.machine.processes import silent
from model_compound_scaling.networks.few_values import few_values
from model_compound_scaling.networks.logits import logits_of
from model_scoring.export.onnx_code_types import CODE_TYPES
from model_scoring.export.onnx_quantizers import with_quantizers
from model_scoring.export.rounding import noise_of_rounding

if TYPE_CHECKING:
    from onnx import ModelProto

EXPORTERS_OPSET = 18  # the first that PyTorch's present exporter writes
IMAGE, LOGITS, BATCH = "image", "logits", "batch"
MOST_DIFFERENCE = 1e-2  # of a file's logits to PyTorch's, relative to the largest; rounding: 1e-6
NODES = 200  # bytes that the two operations and their names take


def _reason(error: BaseException) -> str:
    """What went wrong at first, in a line of text: exporters say beside it what to do next."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", str(error)).split("\n")  # without colours
    return next((line.strip()[:200] for line in lines if line.strip()), type(error).__name__)


@contextmanager
def _exporting() -> Iterator[None]:
    """Without the exporters' remarks on their own future, and whole graphs, which some of them
    print from C++. Whatever fails, they and onnxruntime run the network's code, is a UserError."""
    sink, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with silent(1, 2), redirect_stdout(sink), redirect_stderr(sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise UserError(f"--onnx: this network cannot be exported ({_reason(error)})") from None
    finally:
        logging.disable(before)


def _exported(network: nn.Module, image: Tensor, opset: int) -> "ModelProto":
    """By torch.export, or for opsets that it does not write by TorchScript."""
    names = {"input_names": [IMAGE], "output_names": [LOGITS], "opset_version": opset}
    export = partial(torch.onnx.export, network, (image,), **names)
    if opset >= EXPORTERS_OPSET:
        from onnxscript import optimizer

        any_batch = {0: torch.export.Dim(BATCH)}  # `optimize` would fold BatchNorm
        program = export(dynamo=True, optimize=False, dynamic_shapes=(any_batch,), verbose=False)
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        return program.model_proto
    import onnx

    buffer, axes = io.BytesIO(), {IMAGE: {0: BATCH}, LOGITS: {0: BATCH}}
    unfolded = torch.onnx.TrainingMode.PRESERVE  # evaluation mode would fold BatchNorm
    export(buffer, dynamo=False, training=unfolded, dynamic_axes=axes)
    return onnx.load_from_string(buffer.getvalue())


def float_model(network: nn.Module, shape: tuple[int, int, int], opset: int) -> "ModelProto":
    """A network in evaluation mode as a graph with plain float32 weights, any batch size. shape:
    (channels, height, width). Raises UserError if it cannot be written in that opset."""
    from onnx import helper

    with _exporting():
        model = _exported(network, torch.zeros(2, *shape), opset)
    found = next(o.version for o in model.opset_import if o.domain == "")
    if found != opset:
        raise UserError(f"--onnx-opset {opset}: this network can be written in {found} only")
    for part in (model, model.graph, *model.graph.node):  # where in the code it came from
        del part.metadata_props[:]
    del model.graph.value_info[:]
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    return model


def _packed(codes: np.ndarray, bits: int) -> bytes:
    """Codes as bytes, the first in the lowest bits."""
    binary = codes.astype(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(binary, bitorder="little").tobytes()


def _encoded(weight: np.ndarray, opset: int) -> tuple[np.ndarray, bytes, str] | None:
    """Values, codes and the codes' type; None if that is no smaller, or the values are many."""
    found = few_values(torch.tensor(weight))
    if found is None:
        return None
    values = found.numpy()
    fitting = ((t, b) for t, b, since in CODE_TYPES if opset >= since and len(values) <= 2**b)
    kind, bits = next(fitting)
    if weight.size * bits / 8 + values.nbytes + NODES >= weight.nbytes:
        return None
    return values, _packed(np.searchsorted(values, weight.reshape(-1)), bits), kind


def with_codes(model: "ModelProto") -> "ModelProto":
    """The same graph with each layer of few values as codes and codebook."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    coded = onnx.ModelProto()
    coded.CopyFrom(model)
    opset = next(o.version for o in model.opset_import if o.domain == "")
    stored, decoding = [], []
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        floats = tensor.data_type == TensorProto.FLOAT and weight.ndim > 1
        found = _encoded(weight, opset) if floats else None
        if found is None:
            stored.append(tensor)
            continue
        values, packed, kind = found
        codes, table, indices = (f"{tensor.name}.{part}" for part in ("codes", "values", "indices"))
        number = getattr(TensorProto, kind)
        stored.append(helper.make_tensor(codes, number, weight.shape, packed, raw=True))
        stored.append(numpy_helper.from_array(values, table))
        decoding.append(helper.make_node("Cast", [codes], [indices], to=TensorProto.INT32))
        decoding.append(helper.make_node("Gather", [table, indices], [tensor.name]))
    for field, items in (("initializer", stored), ("node", [*decoding, *model.graph.node])):
        coded.graph.ClearField(field)
        getattr(coded.graph, field).extend(items)
    return coded


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    """Logits of a file's content by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run([LOGITS], {IMAGE: images})[0]


@dataclass(frozen=True)
class Exported:
    """A file's content and how it compares."""

    content: bytes
    float_bytes: int  # size of the same file with plain float weights
    difference: float  # of its logits to PyTorch's, relative to the largest


@torch.no_grad()
def export(
    network: nn.Module, shape: tuple[int, int, int], *, opset: int, properties: dict[str, object]
) -> Exported:
    """A network in evaluation mode on the CPU as an ONNX file that was checked and run.
    `properties` go into the file's metadata, as JSON unless they are text."""
    import onnx
    from onnx import helper

    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    tries = (images, -images)  # which go other ways through code that depends on their values

    def only_logits(_: nn.Module, images: tuple, output: object) -> Tensor:
        if isinstance(output, Tensor) and output.dim() == 2:
            return output
        return logits_of(output, images[0].shape[0], properties.get("num_classes"))

    with network.register_forward_hook(only_logits):
        plain = float_model(network, shape, opset)
        with _exporting():
            expected = torch.cat([network(batch) for batch in tries])
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in properties.items()}
    helper.set_model_props(plain, texts)
    coded = with_codes(with_quantizers(plain))
    with _exporting():
        onnx.checker.check_model(coded, full_check=True)
        content = coded.SerializeToString()
        found = np.concatenate([run(content, batch.numpy()) for batch in tries])
        difference = (torch.from_numpy(found) - expected).abs().max()
        relative = float(difference / expected.abs().max().clamp(min=1e-30))
        classes = properties.get("num_classes")
        if not (
            relative <= MOST_DIFFERENCE
            or relative <= max(noise_of_rounding(network, batch, classes) for batch in tries)
        ):  # tracing took one way of several through the code
            raise ValueError(f"its logits would differ by {relative:.1e} of the largest")
    return Exported(content, plain.ByteSize(), relative)
