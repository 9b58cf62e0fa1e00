"""The simple feature pyramid of plain backbones (Li et al. 2022, ViTDet, sec. 3).

Each level comes from the one map of the backbone alone:

    p_s = norm(output_s(norm(lateral_s(scale_s(c)))))

`scale` is, for four times as many cells a side, two transposed convolutions with a norm
and a GELU between them; for twice as many, one; for as many, nothing; for half as many,
the maximum of 2x2 cells. `lateral` is a 1x1 and `output` a 3x3 convolution; there is no
path between levels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.models.fpn import with_coarser

SCALES = (4, 2, 1, 0.5)
_uniform = nn.initializers.variance_scaling(  # each output reads one cell
    1.0, "fan_in", "uniform", batch_axis=(0, 1)
)


class UpConv(nn.Module):
    """Transposed 2x2 convolution of stride 2: each cell becomes 2x2, one product."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        """Return the map of `features` channels, twice as high and wide."""
        (n, h, w, i), o = x.shape, self.features
        kernel = self.param("kernel", _uniform, (2, 2, i, o))
        bias = self.param("bias", nn.initializers.zeros, (o,))
        kernel = jnp.asarray(kernel, self.dtype).transpose((2, 0, 1, 3))
        y = jnp.asarray(x, self.dtype).reshape((-1, i)) @ kernel.reshape((i, 4 * o))
        y = layers.reshape(y, (n, h, w, 2, 2, o)).transpose((0, 1, 3, 2, 4, 5))
        y = layers.reshape(y, (n, 2 * h, 2 * w, o))
        return y + jnp.asarray(bias, self.dtype)[None, None, None]


class Neck(nn.Module):
    """Turn `{stride: c}` of one map into `{stride / scale: p}` of `channels`.

    `pool_levels` coarser levels follow by subsampling the last, as in `fpn.FPN`. `norm`
    (see `layers.norm`) is of both convolutions of a level and inside of the first
    scale; without one they have a bias. Names: `fpn/up4_1`, `fpn/up4_norm`,
    `fpn/up4_2`, `fpn/lateral4`, `fpn/lateral4_norm`, `fpn/output4`, ...
    """

    channels: int = 256
    scales: tuple[int | float, ...] = SCALES
    pool_levels: int = 1
    norm: str = "layer"
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.fpn",
            channels=(self.channels, ranges.COUNT),
            scales=(self.scales, ranges.several(ranges.POSITIVE)),
            pool_levels=(self.pool_levels, ranges.COUNT_OR_NONE),
        )
        layers.check_norm("fpn", self.norm)
        if not set(self.scales) <= set(SCALES):
            raise ValueError(f"fpn.scales={self.scales}: expected some of {SCALES}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        features: dict[int, Float[Array, "b _ _ _"]],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ c"]]:
        """Return the pyramid; each map is half as high as the one before.

        `extent` of each image in pixels: cells beyond it change none inside.
        """
        if len(features) != 1:
            raise ValueError(
                f"simple_pyramid reads one map, the backbone gives {sorted(features)}: "
                "use a plain backbone (vit), or fpn.name='fpn'"
            )
        ((stride, x),) = features.items()
        whole = layers.cells(extent, stride)
        pyramid = {}
        for scale in sorted(self.scales, reverse=True):
            level = stride / scale
            if level != int(level):
                raise ValueError(
                    f"fpn.scales={self.scales} of stride {stride}: {level} is no whole "
                    "number of pixels; leave out that scale"
                )
            pyramid[int(level)] = self._level(x, scale, int(level), whole)
        return with_coarser(pyramid, self.pool_levels)

    def _level(self, x, scale, stride, extent):
        """The level of one scale; `extent` in cells of `x`, of twice them, ..."""
        c, twice = x.shape[-1], None if extent is None else 2 * extent
        if scale == 4:
            x = UpConv(c // 2, self.dtype, name=f"up{stride}_1")(x)
            x = self._norm(x, f"up{stride}_norm", twice)
            x = jax.nn.gelu(x, approximate=False)
            x = UpConv(c // 4, self.dtype, name=f"up{stride}_2")(x)
            extent = None if twice is None else 2 * twice
        elif scale == 2:
            x = UpConv(c // 2, self.dtype, name=f"up{stride}_1")(x)
            extent = twice
        elif scale == 0.5:
            x = layers.inside(x, extent, -jnp.inf)
            x = layers.max_pool(x, window=2, stride=2, same=True)
            extent = layers.cells(extent, 2)
        for size, name in ((1, f"lateral{stride}"), (3, f"output{stride}")):
            x = layers.Conv(
                self.channels,
                size,
                use_bias=self.norm == "none",
                kernel_init=layers.xavier_uniform,
                dtype=self.dtype,
                name=name,
            )(layers.inside(x, extent))
            x = self._norm(x, f"{name}_norm", extent)
        return x

    def _norm(self, x, name, extent):
        norm = layers.norm(self.norm, eps=1e-6, dtype=self.dtype, name=name)
        return norm(x, extent)
