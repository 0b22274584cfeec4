"""The vocabulary of tracing: what each PyTorch operation is, by its ATen name without overload."""

# Operations with arithmetic -> the kind that the rule tables know. An operation that is neither
# here nor in MOVES is reported by name.
KINDS = {
    "convolution": "conv",
    "addmm": "linear",
    "mm": "linear",
    "bmm": "matmul",
    "baddbmm": "matmul",
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
            "_batch_norm_with_update",
            "batch_norm",
            "cudnn_batch_norm",
            "miopen_batch_norm",
        ),
        "batchnorm",
    ),
    "native_layer_norm": "norm",
    "native_group_norm": "norm",
    "relu": "relu",
    "hardtanh": "relu6",
    "relu6": "relu6",
    "clamp": "relu6",
    "clamp_min": "relu",
    "leaky_relu": "leaky_relu",
    "_prelu_kernel": "leaky_relu",
    "elu": "elu",
    "silu": "swish",
    "sigmoid": "sigmoid",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "tanh": "tanh",
    "gelu": "gelu",
    **dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "reciprocal", "pow"), "function"),
    **dict.fromkeys(("maximum", "minimum"), "compare"),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), "softmax"),
    "add": "add",
    "sub": "add",
    "rsub": "add",
    "mul": "scale",
    "div": "scale",
    **dict.fromkeys(("neg", "abs"), "sign"),
    "mean": "avgpool",
    "_adaptive_avg_pool2d": "avgpool",
    "adaptive_avg_pool2d": "avgpool",
    "avg_pool2d": "avgpool",
    "sum": "sum",
    "max_pool2d_with_indices": "maxpool",
    "max_pool2d": "maxpool",
    "adaptive_max_pool2d": "maxpool",
    "amax": "maxpool",
}

# Operations that only create values: their result does not depend on the image.
# fmt: off
FACTORIES = frozenset([
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_empty_strided",
])

# Operations that copy, reorder or choose values without arithmetic.
MOVES = frozenset([
    "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "expand",
    "clone", "copy", "_to_copy", "alias", "detach", "lift_fresh", "slice", "select", "narrow",
    "split", "split_with_sizes", "unsafe_split", "chunk", "cat", "stack", "unbind", "squeeze",
    "unsqueeze", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "as_strided", "roll",
    "flip", "index", "_unsafe_index", "index_select", "gather", "where", "masked_fill", "fill",
    "repeat", "unfold", "diagonal", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "upsample_nearest2d", "native_dropout", "dropout",
])

# Operations through which a channel that is constant in the input can be followed by applying the
# operation itself to NaN-marked values: each carries NaN on, so NaN always means "not constant".
FOLLOWED = frozenset([
    "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "expand", "clone",
    "alias", "detach", "slice", "select", "split", "split_with_sizes", "cat", "unbind", "squeeze",
    "unsqueeze", "constant_pad_nd", "relu", "hardtanh", "relu6", "clamp", "clamp_min", "leaky_relu",
    "silu", "sigmoid", "hardswish", "hardsigmoid", "tanh", "gelu", "add", "sub", "mul", "div",
    "neg", "mean", "_adaptive_avg_pool2d", "avg_pool2d", "sum", "max_pool2d_with_indices",
    "adaptive_max_pool2d",
])
# fmt: on


def plain_name(func: object) -> str:
    """`aten::relu_` and `aten::relu` -> `relu`."""
    return func._schema.name.rpartition("::")[2].rstrip("_")
