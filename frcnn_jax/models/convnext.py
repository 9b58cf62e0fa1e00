"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", first version).

A block filters every channel by itself with a 7x7, normalises each cell, and mixes the
channels in two layers with a GELU between them (fig. 4).

| model | `depths` | `width` | parameters without the classifier |
| --- | --- | --- | --- |
| ConvNeXt-T | (3, 3, 9, 3) | 96 | 27.8 M |
| ConvNeXt-S | (3, 3, 27, 3) | 96 | 49.5 M |
| ConvNeXt-B | (3, 3, 27, 3) | 128 | 87.6 M |

Parameters are named after the drawing: `backbone/stem`, `backbone/stem_norm`,
`backbone/stage1/block0/depthwise`, `.../norm`, `.../expand`, `.../project`,
`.../layer_scale`, `backbone/stage2/down_norm`, `backbone/stage2/down`, ...,
`backbone/out_norm4`. There is no stochastic depth: a backbone gets no keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from frcnn_jax import ranges
from frcnn_jax.models import layers

EPS = 1e-6  # of every norm
STRIDES = (4, 8, 16, 32)


class Block(nn.Module):
    """y = x + layer_scale(project(gelu(expand(norm(depthwise(x))))))."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return a map of the same shape."""
        c, start = x.shape[-1], layers.truncated_normal
        depthwise = layers.DepthwiseConv(
            7, use_bias=True, dtype=self.dtype, name="depthwise"
        )
        y = layers.LayerNorm(EPS, dtype=self.dtype, name="norm")(depthwise(x))
        y = y.reshape((-1, c))  # two axes: the fast form of a product, see ops
        y = nn.Dense(4 * c, dtype=self.dtype, kernel_init=start, name="expand")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=start, name="project")(y)
        y = layers.LayerScale(dtype=self.dtype, name="layer_scale")(y)
        return x + y.reshape(x.shape)


class Stage(nn.Module):
    """`depth` blocks of `width` channels; `halves`: first a norm and a 2x2/2."""

    depth: int
    width: int
    halves: bool
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the stage's map, `ceil(h / 2)` cells high where it halves."""
        if self.halves:
            x = layers.LayerNorm(EPS, dtype=self.dtype, name="down_norm")(x)
            down = layers.PatchConv(
                self.width,
                2,
                kernel_init=layers.truncated_normal,
                dtype=self.dtype,
                name="down",
            )
            x = down(x)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(self.dtype, name=f"block{i}")(x)
        return x


class Backbone(nn.Module):
    """ConvNeXt giving `{4: .., 8: .., 16: .., 32: ..}` of 1, 2, 4, 8 `width` channels.

    Only the maps of `out_strides` are returned, and no stage beyond the last of them
    exists. `out_norm` normalises each of them once more, as the authors' detectors do;
    a classifier's file lacks these norms, and they keep their initial values. A side
    that a stride does not divide is padded with zeros before that convolution. `remat`:
    the backward pass computes the inside of each block again instead of keeping it.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    out_strides: tuple[int, ...] = STRIDES
    out_norm: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            depths=(self.depths, ranges.several(ranges.COUNT, 4)),
            width=(self.width, ranges.COUNT),
            out_norm=(self.out_norm, ranges.TRUTH),
            remat=(self.remat, ranges.TRUTH),
        )
        if not self.out_strides or not set(self.out_strides) <= set(STRIDES):
            raise ValueError(
                f"convnext out_strides={self.out_strides}: expected some of {STRIDES}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the maps of `out_strides`, `ceil(h / stride)` cells high."""
        stem = layers.PatchConv(
            self.width,
            4,
            kernel_init=layers.truncated_normal,
            dtype=self.dtype,
            name="stem",
        )
        x = layers.LayerNorm(EPS, dtype=self.dtype, name="stem_norm")(stem(images))
        features = {}
        for i, stride in enumerate(STRIDES):
            if stride > max(self.out_strides):
                break
            x = Stage(
                depth=self.depths[i],
                width=self.width * 2**i,
                halves=i > 0,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage{i + 1}",
            )(x)
            if stride in self.out_strides:
                norm = layers.LayerNorm(EPS, dtype=self.dtype, name=f"out_norm{stride}")
                features[stride] = norm(x) if self.out_norm else x
        return features
