"""VGG-16 (Simonyan & Zisserman 2015, table 1, column D) and its fc6, fc7 as a box head.

The backbone ends with conv5_3, without the fifth pooling, which RoIPool replaces (Fast
R-CNN, Sec 2.1). Parameters have the names of the original: `backbone/conv1_1`,
..., `backbone/conv5_3`, `box_head/fc6`, `box_head/fc7`. The paper trains conv3_1 and
up.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.models.box_head import box_predictors

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions)


class Backbone(nn.Module):
    """Thirteen 3x3 convolutions with ReLU in five stages, giving `{16: conv5_3}`.

    A 2x2/2 maximum lies between the stages; an odd row or column is pooled alone (as
    Caffe does), so that the map has `ceil(h / 16)` cells. Kernels start as He normal.
    `bgr` is for weights that were trained on BGR, as Caffe's.
    """

    bgr: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            bgr=(self.bgr, ranges.TRUTH),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ 512"]]:
        """Return the map of stride 16.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        """
        x = images[..., ::-1] if self.bgr else images
        x, now = layers.inside(x, extent), extent
        for i, (channels, count) in enumerate(STAGES, start=1):
            if i > 1:
                x = layers.max_pool(x, window=2, stride=2, same=True)
                now = layers.cells(now, 2)
            for j in range(1, count + 1):
                name = f"conv{i}_{j}"
                x = layers.Conv(channels, dtype=self.dtype, name=name)(x)
                x = layers.relu(layers.inside(x, now))
        return {16: x}


class BoxHead(nn.Module):
    """fc6 and fc7 with ReLU and dropout, then the two predictors (Fast R-CNN, Sec 2.1).

    Given a key an image, dropout is on; without, as in prediction, it is off. fc6 reads
    the pooled RoI in the order (y, x, channel); weights made for (channel, y, x), as in
    Caffe and PyTorch, need `transpose` before they fit. New layers start as N(0, 0.01).
    """

    num_classes: int
    widths: tuple[int, int] = (4096, 4096)
    dropout: float = 0.5
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.box_head",
            widths=(self.widths, ranges.several(ranges.COUNT, 2)),
            dropout=(self.dropout, ranges.number(0, below=1)),
            class_agnostic=(self.class_agnostic, ranges.TRUTH),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b r h w c"], keys: Array | None = None
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` `[b]`."""
        x = x.reshape((*x.shape[:2], -1)).astype(self.dtype)
        for i, (name, width) in enumerate(
            zip(("fc6", "fc7"), self.widths, strict=True)
        ):
            init = nn.initializers.normal(0.01)
            x = nn.Dense(width, kernel_init=init, dtype=self.dtype, name=name)(x)
            x = layers.relu(x)
            if keys is not None:
                layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
                x = layers.dropout(layer_keys, x, rate=self.dropout)
        return box_predictors(
            x,
            num_classes=self.num_classes,
            class_agnostic=self.class_agnostic,
            dtype=self.dtype,
        )
