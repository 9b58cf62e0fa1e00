"""MobileNetV3-Large (Howard et al. 2019, table 1) with, by default, frozen batch norm.

A block widens its map with a 1x1 convolution, filters every channel by itself, weighs
the channels (squeeze and excitation, Sec 5.3) and narrows again. Parameters are named
after the drawing: `backbone/stem`, `backbone/stem_bn`, `backbone/block1/expand`,
`.../depthwise`, `.../squeeze`, `.../excite`, `.../project`, each with its `_bn`, ...,
`backbone/last`. Squeezing averages over the cells within the image's extent.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers

# Table 1: kernel, expanded, out, squeeze and excitation, hard-swish, stride.
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
# The block (0 the stem, 16 the last convolution) whose map has the key: the first block
# of each stride, as in torchvision's detectors.
OUTPUTS = {2: 0, 4: 2, 8: 4, 16: 7, 32: 13, 33: 16}


class Block(nn.Module):
    """y = project(excite(depthwise(expand(x)))) [+ x], fig. 4."""

    kernel_size: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int
    norm: str
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Return the block's map, `ceil(h / stride)` high; `extent` in cells of `x`.

        `x` is zero beyond its extent, and so is the map.
        """
        strided = layers.cells(extent, self.stride)
        activation = jax.nn.hard_swish if self.hard_swish else layers.relu

        def conv(x, features, name, **kwargs):
            return layers.Conv(features, 1, dtype=self.dtype, name=name, **kwargs)(x)

        def norm(x, name, extent):
            norm = layers.norm(
                self.norm, name=name, eps=self.norm_eps, dtype=self.dtype
            )
            return layers.inside(norm(x, extent), extent)

        y = x
        if self.expanded != x.shape[-1]:
            y = conv(y, self.expanded, "expand", use_bias=False)
            y = activation(norm(y, "expand_bn", extent))
        depthwise = layers.DepthwiseConv(
            self.kernel_size, self.stride, self.dtype, name="depthwise"
        )
        y = activation(norm(depthwise(y), "depthwise_bn", strided))
        if self.squeeze:
            mean = layers.mean_inside(y, strided)
            weight = layers.relu(conv(mean, eighths(self.expanded // 4), "squeeze"))
            y = y * jax.nn.hard_sigmoid(conv(weight, self.expanded, "excite"))
        y = norm(conv(y, self.out, "project", use_bias=False), "project_bn", strided)
        return x + y if self.stride == 1 and x.shape[-1] == self.out else y


class Backbone(nn.Module):
    """MobileNetV3-Large giving the maps of `out_strides`: 2, 4, 8, 16, 32 and 33.

    Key 33 is the last convolution (960 channels), whose stride is 32 as well. Layers
    after the last of them are not built. The paper's epsilon is 1e-3; torchvision's
    detectors have 1e-5.
    """

    out_strides: tuple[int, ...] = (32, 33)
    norm: str = "frozen"
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            norm_eps=(self.norm_eps, ranges.NOT_NEGATIVE),
        )
        if not self.out_strides or not set(self.out_strides) <= set(OUTPUTS):
            raise ValueError(
                f"mobilenet out_strides={self.out_strides}: expected some of "
                f"{tuple(OUTPUTS)}"
            )
        layers.check_norm("backbone", self.norm, none=False)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the maps of `out_strides`, `ceil(h / stride)` cells high.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        """

        def conv_norm(x, features, size, stride, name, extent):
            x = layers.Conv(
                features, size, stride, use_bias=False, dtype=self.dtype, name=name
            )(x)
            norm = layers.norm(
                self.norm, name=f"{name}_bn", eps=self.norm_eps, dtype=self.dtype
            )
            return jax.nn.hard_swish(layers.inside(norm(x, extent), extent))

        now = layers.cells(extent, 2)
        maps = [conv_norm(layers.inside(images, extent), 16, 3, 2, "stem", now)]
        last = max(OUTPUTS[key] for key in self.out_strides)
        for i, block in enumerate(BLOCKS[:last], start=1):
            layer = Block(
                *block,
                norm=self.norm,
                norm_eps=self.norm_eps,
                dtype=self.dtype,
                name=f"block{i}",
            )
            maps.append(layer(maps[-1], now))
            now = layers.cells(now, layer.stride)
        if last > len(BLOCKS):
            maps.append(conv_norm(maps[-1], 960, 1, 1, "last", now))
        return {key: maps[OUTPUTS[key]] for key in sorted(self.out_strides)}


def eighths(channels: int) -> int:
    """`channels` rounded to a multiple of eight, never below 90 % of them.

    >>> eighths(72 // 4), eighths(960 // 4)
    (24, 240)
    """
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
