"""The extent of an image: what surrounds an image on its canvas changes nothing.

A model states `pad_to`, and the extent of an image is its size rounded up to it: the
canvas that the image would have alone. Cells of a map beyond the extent are padding,
and a layer that mixes cells does not read them:

| layer | what it reads beyond the extent |
| --- | --- |
| convolution larger than 1x1, stride or not | zeros: `inside(x, extent)` |
| maximum | -inf: `inside(x, extent, -jnp.inf)`; zeros, where no value is below 0 |
| mean, norm over cells | nothing: `mean_inside`, `mask` |
| attention | nothing: its keys are masked |
| 1x1 convolution, norm of one cell, ReLU | anything: they mix no cells |

    n images · h w c map · extent [n, 2] (h, w), in cells of the map that it goes with

`extent` None is the whole map. Maps of stride s have `ceil(size / s)` cells, so that
the part inside is the map that a canvas of the extent would have: `cells`.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from frcnn_jax.ops.primitive import wide
from frcnn_jax.types import Array


def extent_of(image_size: Int[Array, "*n 2"], pad_to: int) -> Int[Array, "*n 2"]:
    """The sizes (h, w) in pixels, rounded up to a multiple of `pad_to`.

    >>> extent_of(jnp.array([300, 400]), 32).tolist()
    [320, 416]
    """
    return -(-jnp.asarray(image_size, jnp.int32) // pad_to) * pad_to


def cells(extent: Int[Array, "*n 2"] | None, stride: int) -> Any:
    """The extent in cells `stride` times as large, rounded up; None stays None.

    >>> cells(jnp.array([320, 417]), 32).tolist()
    [10, 14]
    """
    return None if extent is None else -(-jnp.asarray(extent, jnp.int32) // stride)


def stride_of(key: int) -> int:
    """The stride of a map of `{key: map}`: the key, but for a second map of a stride.

    Its key is the stride + 1 (33), and twice that (66) where it is halved again: see
    `models.fpn`.

    >>> stride_of(32), stride_of(33), stride_of(66)
    (32, 32, 64)
    """
    odd, times = key, 1
    while odd % 2 == 0:
        odd, times = odd // 2, 2 * times
    second = odd > 16 and (odd - 1) & (odd - 2) == 0
    return (odd - 1) * times if second else key


def mask(extent: Int[Array, "n 2"], size: tuple[int, ...]) -> Bool[Array, "n h w 1"]:
    """Which cells of maps of `size` (h, w) lie inside.

    >>> mask(jnp.array([[1, 2]]), (2, 3))[0, ..., 0].astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    (h, w), extent = size, jnp.asarray(extent)
    rows = jnp.arange(h, dtype=jnp.int32)[None] < extent[:, :1]
    columns = jnp.arange(w, dtype=jnp.int32)[None] < extent[:, 1:]
    return rows[:, :, None, None] & columns[:, None, :, None]


def inside(
    x: Float[Array, "n h w c"],
    extent: Int[Array, "n 2"] | None,
    fill: float | int = 0.0,
) -> Float[Array, "n h w c"]:
    """`x` with `fill` in the cells beyond the extent, whatever they hold.

    They have no gradient. A selection fuses with what made `x`: put it before a ReLU,
    so that the ReLU's result is what a convolution reads and keeps.
    """
    if extent is None:
        return x
    return jnp.where(mask(extent, x.shape[1:3]), x, jnp.asarray(fill, x.dtype))


def mean_inside(
    x: Float[Array, "n h w c"], extent: Int[Array, "n 2"] | None
) -> Float[Array, "n 1 1 c"]:
    """The mean over the cells of each map that lie inside; 0 where none does."""
    if extent is None:
        return x.mean((1, 2), keepdims=True)
    # Not in float16, in which a sum of cells is soon infinite.
    sums = inside(x, extent).sum((1, 2), keepdims=True, dtype=wide(x.dtype))
    sides = jnp.minimum(jnp.asarray(extent), jnp.array(x.shape[1:3], jnp.int32)[None])
    count = jnp.maximum(sides.prod(1), 1).astype(sums.dtype)
    return (sums / count[:, None, None, None]).astype(x.dtype)
