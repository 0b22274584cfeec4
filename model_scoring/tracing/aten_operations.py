"""The vocabulary of tracing: one table of PyTorch's operations, by ATen name without overload.

Each has a kind, which the rule sets count, and a way that channels take through it, a key of
`channel_rules.RULES`. An operation that is not here is reported by name, and its channels stay.
"""

from typing import NamedTuple

UNKNOWN = "unknown"  # an operation that is not in the table
STORED = "stored"  # a parameter that only takes part in a copy
STRAIGHT_THROUGH = "straight_through"  # x + (q - x), written for gradients: q


class Operation(NamedTuple):
    """One row of the table."""

    kind: str | None  # None: copies, reorders or chooses values, without arithmetic
    way: str = ""  # "": not understood, its channels stay as they are
    extra: tuple[float, float] = (0.0, 0.0)  # (mults, adds) per output element beyond its kind's


NO_RULE = Operation(UNKNOWN)


def _rows(names: str, kind: str | None, way: str = "", **extra: tuple) -> dict[str, Operation]:
    return dict.fromkeys(names.split(), Operation(kind, way, **extra))


# fmt: off
OPERATIONS: dict[str, Operation] = {
    **_rows("convolution", "conv", "convolution"),
    **_rows("addmm mm bmm baddbmm mv addmv", "linear", "product"),
    **_rows("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
            "_batch_norm_no_update _batch_norm_with_update batch_norm cudnn_batch_norm "
            "miopen_batch_norm", "batchnorm", "batchnorm"),
    **_rows("native_layer_norm native_group_norm", "norm"),
    # one number to one number; with several operands, channel by channel
    **_rows("relu clamp_min clamp_max threshold", "relu", "elementwise"),
    **_rows("hardtanh relu6 clamp", "relu6", "elementwise"),
    **_rows("leaky_relu _prelu_kernel rrelu_with_noise", "leaky_relu", "elementwise"),
    **_rows("silu", "swish", "elementwise"),
    **_rows("glu", "swish"),
    **_rows("celu", "elu", "elementwise"),
    **_rows("log_sigmoid_forward", "log_sigmoid"),
    **{name: Operation(name, "elementwise") for name in
       ("elu", "sigmoid", "hardswish", "hardsigmoid", "tanh", "gelu", "softplus", "mish")},
    **_rows("exp exp2 log log2 log10 erf sin cos atan sqrt reciprocal pow", "function",
            "elementwise"),
    **_rows("rsqrt", "function", "elementwise", extra=(1, 0)),  # root, division
    **_rows("log1p expm1", "shifted_function", "elementwise"),
    **_rows("maximum minimum gt ge lt le eq ne", "compare", "elementwise"),
    **_rows("add sub rsub", "add", "elementwise"),
    **_rows("mul div addcmul addcdiv", "scale", "elementwise"),
    **_rows("lerp", "scale", "elementwise", extra=(0, 2)),  # x + w (y - x)
    **_rows("neg abs sign sgn", "sign", "elementwise"),
    **_rows("round floor ceil trunc", "round", "rounding"),
    **_rows("fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams "
            "_fake_quantize_learnable_per_tensor_affine _fused_moving_avg_obs_fq_helper "
            "_fake_quantize_learnable_per_channel_affine", "quantize", "rounding"),
    **_rows("_softmax _safe_softmax _log_softmax", "softmax"),
    # many pixels to one, or along given dimensions
    **_rows("_adaptive_avg_pool2d adaptive_avg_pool2d avg_pool2d", "avgpool", "window"),
    **_rows("max_pool2d_with_indices max_pool2d adaptive_max_pool2d", "maxpool", "window"),
    **_rows("mean", "avgpool", "reduction"),
    **_rows("sum", "sum", "reduction"),
    **_rows("amax amin max min", "maxpool", "reduction"),
    **_rows("var var_mean", "variance"),
    **_rows("std std_mean", "variance", extra=(1, 0)),  # its root
    **_rows("linalg_vector_norm", "length"),
    # without arithmetic
    **_rows("clone alias detach lift_fresh _to_copy reflection_pad2d replication_pad2d "
            "native_dropout dropout", None, "same"),
    **_rows("view _unsafe_view reshape _reshape_alias", None, "view"),
    **_rows("t transpose permute expand squeeze unsqueeze slice select unbind split "
            "split_with_sizes", None, "move"),
    **_rows("cat", None, "concatenation"),
    **_rows("constant_pad_nd", None, "padding"),
    **_rows("where masked_fill logical_not logical_and logical_or", None, "elementwise"),
    **_rows("copy narrow unsafe_split chunk stack as_strided roll flip index _unsafe_index "
            "index_select gather fill repeat unfold diagonal pixel_shuffle "
            "pixel_unshuffle channel_shuffle upsample_nearest2d im2col _local_scalar_dense", None),
}

# Operations that pick values by their places: whole numbers that belong to the network's code.
PICKS = frozenset([
    "index", "_unsafe_index", "index_select", "gather", "embedding", "take", "take_along_dim",
])
# Operations that only create values, in the form of a given tensor: their result does not depend on
# the image.
FACTORIES = frozenset([
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_empty_strided",
])
# fmt: on
