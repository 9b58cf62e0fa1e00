"""Feature pyramid network (Lin et al. 2017, Sec 3): strong features at every stride.

    m_s = lateral_s(c_s) + up(m_2s),   p_s = output_s(m_s)

with `lateral` a 1x1 and `output` a 3x3 convolution, both with bias, and `up` the
nearest-neighbour upsampling by two, cut to the size of the finer map. Backbone maps
must be `ceil(h / stride)` high, as those of this package are: then any image size, odd
maps included, works without padding, and the cut removes at most a row and a column.

Where a backbone gives two maps of one stride (MobileNetV3), the key of the second is
the stride + 1; `up` does not change a map of equal size.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.ops.extents import stride_of


def upsample(x: Float[Array, "b h w c"], size: tuple[int, ...]) -> Array:
    """Repeat every cell 2x2 and cut to `size`, if it is not of that size already.

    Raises ValueError if it is neither that size nor half of it.
    """
    h, w = size
    if x.shape[1:3] == (h, w):
        return x
    if x.shape[1:3] != (-(-h // 2), -(-w // 2)):
        raise ValueError(
            f"FPN: a map of {x.shape[1:3]} cells lies above one of {size}; each level "
            "must have half the cells of the one below, rounded up"
        )
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :w]


class FPN(nn.Module):
    """Turn `{stride: c}` into `{stride: p}` of `channels`, strides ascending.

    `pool_levels` coarser levels follow by subsampling the last (p6 = every second cell
    of p5: a max-pool of window 1). Convolutions start uniform with variance 1 / fan_in
    (Detectron2's and torchvision's choice), biases at 0. With a `norm` (see
    `layers.norm`) they have no bias. Names: `fpn/lateral4`, `fpn/output4` (and
    `fpn/lateral4_norm`, ...), `fpn/lateral8`, ...
    """

    channels: int = 256
    pool_levels: int = 1
    norm: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.fpn",
            channels=(self.channels, ranges.COUNT),
            pool_levels=(self.pool_levels, ranges.COUNT_OR_NONE),
        )
        layers.check_norm("fpn", self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        features: dict[int, Float[Array, "b _ _ _"]],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ c"]]:
        """Return the pyramid; each map is half as high as the one before, or equal.

        `extent` of each image in pixels: cells beyond it change none inside.
        """

        def conv(x, size, name, extent):
            x = layers.Conv(
                self.channels,
                size,
                use_bias=self.norm == "none",
                kernel_init=layers.xavier_uniform,
                dtype=self.dtype,
                name=name,
            )(x)
            norm = layers.norm(self.norm, dtype=self.dtype, name=f"{name}_norm")
            return norm(x, extent)

        pyramid, merged = {}, None
        for stride in sorted(features, reverse=True):
            now = layers.cells(extent, stride_of(stride))
            lateral = conv(features[stride], 1, f"lateral{stride}", now)
            if merged is not None:
                lateral = lateral + upsample(merged, lateral.shape[1:3])
            merged = layers.inside(lateral, now)
            pyramid[stride] = conv(merged, 3, f"output{stride}", now)
        pyramid = {stride: pyramid[stride] for stride in sorted(pyramid)}
        return with_coarser(pyramid, self.pool_levels)


def with_coarser(
    pyramid: dict[int, Float[Array, "b _ _ c"]], levels: int
) -> dict[int, Float[Array, "b _ _ c"]]:
    """The pyramid and `levels` more, each every second cell of the coarsest before."""
    pyramid = dict(pyramid)
    for _ in range(levels):
        top = max(pyramid)
        pyramid[2 * top] = pyramid[top][:, ::2, ::2]
    return pyramid


Neck = FPN  # the name that `build` looks for
