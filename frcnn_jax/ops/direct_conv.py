"""The convolution as XLA computes it: the formulation that others are compared with."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from frcnn_jax.ops.primitive import on_each_device
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
    apply = partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    # JAX has no rule for the kernel's gradient where a mesh shards the images.
    return on_each_device(apply, (True, False), (jnp.asarray(x), jnp.asarray(kernel)))
