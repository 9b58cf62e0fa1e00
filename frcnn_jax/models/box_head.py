"""The head of the detector: from pooled RoIs to class logits and box deltas.

Legend: b images, r RoIs, h w c pooled map, C classes.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from frcnn_jax import ranges
from frcnn_jax.models import layers


class BoxHead(nn.Module):
    """FPN Sec 4.2: hidden layers of `widths` with ReLU, then the two predictors.

    Before them, 3x3 convolutions of the widths `convs` with `norm` (see `layers.norm`)
    and ReLU: `conv1`, `conv1_norm`, ... . `fc1` reads the map flattened in the order
    (y, x, channel); weights made for (channel, y, x), as PyTorch flattens, need
    `transpose` before they fit. Dense kernels start uniform with variance 1 / fan_in
    (Detectron2's choice).
    """

    num_classes: int
    widths: tuple[int, ...] = (1024, 1024)
    convs: tuple[int, ...] = ()
    norm: str = "none"
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.box_head",
            widths=(self.widths, ranges.several(ranges.COUNT, least=0)),
            convs=(self.convs, ranges.several(ranges.COUNT, least=0)),
            class_agnostic=(self.class_agnostic, ranges.TRUTH),
        )
        layers.check_norm("box_head", self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b r h w c"], keys=None
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` are not used."""
        del keys
        b, r = x.shape[:2]
        x = x.reshape((b * r, *x.shape[2:])).astype(self.dtype)
        for i, width in enumerate(self.convs, start=1):
            x = layers.Conv(
                width,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = layers.norm(self.norm, dtype=self.dtype, name=f"conv{i}_norm")(x)
            x = layers.relu(x)
        x = x.reshape((b * r, -1)).reshape((b, r, -1))
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(
                width,
                kernel_init=layers.xavier_uniform,
                dtype=self.dtype,
                name=f"fc{i}",
            )(x)
            x = layers.relu(x)
        return box_predictors(
            x,
            num_classes=self.num_classes,
            class_agnostic=self.class_agnostic,
            dtype=self.dtype,
        )


def box_predictors(
    x: Float[Array, "b r d"], *, num_classes: int, class_agnostic: bool, dtype: Any
) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c 4"]]:
    """Add the sibling layers of Fast R-CNN Sec 2.1 to the compact module that calls.

    `class_logits` (C + 1, background first) starts as N(0, 0.01), `class_deltas` (row
    `c - 1` is class c; one row when class-agnostic) as N(0, 0.001). Float32 outputs.
    """
    rows = 1 if class_agnostic else num_classes
    small, tiny = nn.initializers.normal(0.01), nn.initializers.normal(0.001)
    logits = nn.Dense(
        num_classes + 1, kernel_init=small, dtype=dtype, name="class_logits"
    )(x)
    deltas = nn.Dense(4 * rows, kernel_init=tiny, dtype=dtype, name="class_deltas")(x)
    deltas = deltas.reshape((*x.shape[:-1], rows, 4))
    return logits.astype(jnp.float32), deltas.astype(jnp.float32)
