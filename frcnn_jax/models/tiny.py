"""A small network that learns from scratch in minutes on a CPU: tests and the demo.

Group normalisation (Wu & He 2018) needs neither pretrained statistics nor large
batches. Its statistics are those of the cells within the image's extent.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers


class Backbone(nn.Module):
    """A 3x3/2 stem, then one residual stage per width: `{4: .., 8: .., ...}`.

    Each stage halves the map with a 3x3/2 convolution and adds `blocks` residual pairs
    of 3x3 convolutions. The number of widths is the number of strides, from 4 on; only
    those of `out_strides` are returned (`()` means all). `groups` divides every width.
    """

    widths: tuple[int, ...] = (24, 32, 64, 96)
    blocks: int = 1
    groups: int = 8
    out_strides: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            widths=(self.widths, ranges.several(ranges.COUNT)),
            blocks=(self.blocks, ranges.COUNT),
            groups=(self.groups, ranges.COUNT),
            out_strides=(self.out_strides, ranges.several(ranges.COUNT, least=0)),
        )
        available = tuple(4 * 2**i for i in range(len(self.widths)))
        if not set(self.out_strides) <= set(available):
            raise ValueError(
                f"tiny out_strides={self.out_strides}: {len(self.widths)} widths give "
                f"{available}"
            )
        if any(width % self.groups for width in self.widths):
            raise ValueError(
                f"tiny widths={self.widths}: each must be a multiple of "
                f"groups={self.groups}"
            )
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

        def conv_norm(x, features, stride, name, total):
            inside = layers.cells(extent, total)
            x = layers.Conv(
                features, 3, stride, use_bias=False, dtype=self.dtype, name=name
            )(x)
            norm = layers.GroupNorm(self.groups, dtype=self.dtype, name=f"{name}_norm")
            return layers.inside(norm(x, inside), inside)

        x = layers.inside(images, extent)
        x = layers.relu(conv_norm(x, self.widths[0], 2, "stem", 2))
        features = {}
        for i, width in enumerate(self.widths):
            total = 4 * 2**i
            x = layers.relu(conv_norm(x, width, 2, f"stage{i + 1}_down", total))
            for j in range(self.blocks):
                name = f"stage{i + 1}_block{j}"
                y = layers.relu(conv_norm(x, width, 1, f"{name}_conv1", total))
                x = layers.relu(x + conv_norm(y, width, 1, f"{name}_conv2", total))
            features[total] = x
        return {s: features[s] for s in sorted(self.out_strides or features)}
