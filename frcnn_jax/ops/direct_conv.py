"""The convolution as XLA computes it: the formulation that others are compared with."""

import jax
from jaxtyping import Float

from frcnn_jax.types import Array


def direct_conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i2 o"],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "n h2 w2 o"]:
    """Cross-correlate NHWC `x` with an HWIO kernel, `padding` zeros on every side.

    With `groups`, output channels read an equal share of the input each, and `i2` is
    the size of that share.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
