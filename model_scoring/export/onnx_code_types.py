"""What ONNX can store codes in. Without torch: the command line reads it before it loads that."""

from typing import NamedTuple

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what writes and tries the files
OPSETS = range(13, 26)
# types of integers: ONNX' name, bits, and the first opset whose Cast takes it
CODE_TYPES = (("UINT2", 2, 25), ("UINT4", 4, 21), ("INT8", 8, 13))


class ActivationType(NamedTuple):
    """A type that QuantizeLinear makes."""

    name: str
    low: int
    high: int
    since: int  # the first opset in which it does


# the smallest first
ACTIVATION_TYPES = (
    ActivationType("UINT2", 0, 3, 25),
    ActivationType("INT2", -2, 1, 25),
    ActivationType("UINT4", 0, 15, 21),
    ActivationType("INT4", -8, 7, 21),
    ActivationType("UINT8", 0, 255, 13),
    ActivationType("INT8", -128, 127, 13),
)
