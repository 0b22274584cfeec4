"""What ONNX can store codes in. Without torch: the command line reads it before it loads that."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what writes and tries the files
OPSETS = range(13, 26)
# types of integers: ONNX' name, bits, and the first opset whose Cast takes it
CODE_TYPES = (("UINT2", 2, 25), ("UINT4", 4, 21), ("INT8", 8, 13))
