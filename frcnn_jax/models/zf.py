"""ZF (Zeiler & Fergus 2014), the small and fast network of the paper's tables.

| layer | kernel | channels | then |
| --- | --- | --- | --- |
| conv1 | 7x7/2 | 96 | ReLU, LRN, 3x3/2 maximum |
| conv2 | 5x5/2 | 256 | ReLU, LRN, 3x3/2 maximum |
| conv3, conv4 | 3x3 | 384 | ReLU |
| conv5 | 3x3 | 256 | ReLU |

fc6 and fc7 on the pooled RoIs are those of VGG: `box_head.name` "zf" and "vgg" are one.
py-faster-rcnn's ZF pools RoIs to 6x6, its VGG to 7x7.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.models.vgg import BoxHead

__all__ = ["Backbone", "BoxHead"]


class Backbone(nn.Module):
    """Five convolutions with ReLU, local response normalisation after two: `{16: ..}`.

    `lrn_window` is (3, 3, 1), within a channel, as in py-faster-rcnn's ZF; (1, 1, 3)
    across channels, as in AlexNet. The map has `ceil(h / 16)` cells; Caffe's poolings
    round up and may have one more at the right and the bottom.
    """

    lrn_window: tuple[int, int, int] = (3, 3, 1)
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            lrn_window=(self.lrn_window, ranges.several(ranges.COUNT, 3)),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ 256"]]:
        """Return the map of stride 16.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        """

        def conv(x, channels, size, stride, name, total):
            layer = layers.Conv(channels, size, stride, dtype=self.dtype, name=name)
            return layers.relu(layers.inside(layer(x), layers.cells(extent, total)))

        def shrink(x, total):
            x = layers.local_response_norm(x, window=self.lrn_window)
            x = layers.max_pool(x, window=3, stride=2, padding=1)
            return layers.inside(x, layers.cells(extent, total))

        x = layers.inside(images, extent)
        x = shrink(conv(x, 96, 7, 2, "conv1", 2), 4)
        x = shrink(conv(x, 256, 5, 2, "conv2", 8), 16)
        x = conv(x, 384, 3, 1, "conv3", 16)
        x = conv(x, 384, 3, 1, "conv4", 16)
        return {16: conv(x, 256, 3, 1, "conv5", 16)}
