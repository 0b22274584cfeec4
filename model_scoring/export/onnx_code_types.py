"""What ONNX can store codes in. Without torch: the command line reads it before it loads that."""

from dataclasses import dataclass

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what writes and tries the files
OPSETS = range(13, 26)


@dataclass(frozen=True)
class CodeType:
    """A type of integers that codes can be stored in."""

    name: str  # ONNX' name for it
    bits: int
    since: int  # opset of a Cast that takes it


CODE_TYPES = (CodeType("UINT2", 2, 25), CodeType("UINT4", 4, 21), CodeType("INT8", 8, 13))
