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
`backbone/out_norm4`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers

EPS = 1e-6  # of every norm
STRIDES = (4, 8, 16, 32)


class Block(nn.Module):
    """y = x + layer_scale(project(gelu(expand(norm(depthwise(x))))))."""

    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        extent: Int[Array, "b 2"] | None,
        factor: Float[Array, " b"] | None,
    ) -> Float[Array, "b h w c"]:
        """Return a map of the same shape; `factor` as in `layers.add_branch`.

        `extent` in cells of `x`.
        """
        c, start = x.shape[-1], layers.truncated_normal
        depthwise = layers.DepthwiseConv(
            7, use_bias=True, dtype=self.dtype, name="depthwise"
        )
        y = depthwise(layers.inside(x, extent))
        y = layers.LayerNorm(EPS, dtype=self.dtype, name="norm")(y)
        y = y.reshape((-1, c))  # two axes: the fast form of a product, see ops
        y = nn.Dense(4 * c, dtype=self.dtype, kernel_init=start, name="expand")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=start, name="project")(y)
        y = layers.LayerScale(dtype=self.dtype, name="layer_scale")(y)
        return layers.add_branch(x, y.reshape(x.shape), factor)


class Stage(nn.Module):
    """`depth` blocks of `width` channels; `halves`: first a norm and a 2x2/2."""

    depth: int
    width: int
    halves: bool
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        extent: Int[Array, "b 2"] | None,
        factors: Float[Array, "b n"] | None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Return the stage's map, `ceil(h / 2)` cells high where it halves.

        `extent` in cells of `x`.
        """
        if self.halves:
            x = layers.LayerNorm(EPS, dtype=self.dtype, name="down_norm")(x)
            down = layers.PatchConv(
                self.width,
                2,
                kernel_init=layers.truncated_normal,
                dtype=self.dtype,
                name="down",
            )
            x = down(layers.inside(x, extent))
            extent = layers.cells(extent, 2)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            factor = None if factors is None else factors[:, i]
            x = block(self.dtype, name=f"block{i}")(x, extent, factor)
        return x


class Backbone(nn.Module):
    """ConvNeXt giving `{4: .., 8: .., 16: .., 32: ..}` of 1, 2, 4, 8 `width` channels.

    Only the maps of `out_strides` are returned, and no stage beyond the last of them
    exists. `out_norm` normalises each of them once more, as the authors' detectors do;
    a classifier's file lacks these norms, and they keep their initial values. A side
    that a stride does not divide is padded with zeros before that convolution.
    `stochastic_depth` is the rate of the last block, off without keys
    (`layers.branch_factors`). `remat`: the backward pass computes the inside of each
    block again instead of keeping it.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    out_strides: tuple[int, ...] = STRIDES
    out_norm: bool = True
    stochastic_depth: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            depths=(self.depths, ranges.several(ranges.COUNT, 4)),
            width=(self.width, ranges.COUNT),
            out_norm=(self.out_norm, ranges.TRUTH),
            stochastic_depth=(self.stochastic_depth, ranges.number(0, below=1)),
            remat=(self.remat, ranges.TRUTH),
        )
        if not self.out_strides or not set(self.out_strides) <= set(STRIDES):
            raise ValueError(
                f"convnext out_strides={self.out_strides}: expected some of {STRIDES}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
        keys: Array | None = None,
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the maps of `out_strides`, `ceil(h / stride)` cells high.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        `keys` `[b]` turn stochastic depth on.
        """
        stem = layers.PatchConv(
            self.width,
            4,
            kernel_init=layers.truncated_normal,
            dtype=self.dtype,
            name="stem",
        )
        x = stem(layers.inside(images, extent))
        x = layers.LayerNorm(EPS, dtype=self.dtype, name="stem_norm")(x)
        factors, features, now = None, {}, layers.cells(extent, 4)
        if keys is not None:
            count, rate = sum(self.depths), self.stochastic_depth
            factors = layers.branch_factors(keys, count=count, rate=rate)
        for i, stride in enumerate(STRIDES):
            if stride > max(self.out_strides):
                break
            stage = Stage(
                depth=self.depths[i],
                width=self.width * 2**i,
                halves=i > 0,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage{i + 1}",
            )
            at = sum(self.depths[:i])
            x = stage(x, now, factors if factors is None else factors[:, at:])
            now = layers.cells(extent, stride)
            if stride in self.out_strides:
                norm = layers.LayerNorm(EPS, dtype=self.dtype, name=f"out_norm{stride}")
                features[stride] = norm(x) if self.out_norm else x
        return features
