"""Learned positions of a grid, resized to the map that they are used on.

A network learns them for the size of its pre-training; another map gets them
interpolated, as timm and Detectron2 do. One image a call. `count`, the cells along an
axis, may be traced: then a map of static size holds an image of `count` cells at its
start, and cells beyond repeat the last one.

    p q rows and columns of the learned grid · h w of the map · c channels
"""

import jax.numpy as jnp
from jaxtyping import Float, Int

from frcnn_jax.ops.modes import take
from frcnn_jax.ops.primitive import wide
from frcnn_jax.types import Array

Count = int | Int[Array, ""]


def cubic_weights(old: int, size: int, count: Count) -> Float[Array, "{size} {old}"]:
    """What each of `size` new cells takes from each of `old` ones along an axis.

    Cell i of `count` lies at `(i + 1/2) old / count`; the weights are Keys' cubic with
    a = -1/2, as wide as a new cell where there are fewer of them, and sum to 1: PIL's
    and PyTorch's antialiased bicubic, which timm uses for positions.
    """
    count = jnp.asarray(count, jnp.float32)
    step = old / count
    cell = jnp.minimum(jnp.arange(size, dtype=jnp.float32), count - 1)
    places = jnp.arange(old, dtype=jnp.float32) + 0.5
    far = jnp.abs(places[None] - ((cell + 0.5) * step)[:, None])
    far = far / jnp.maximum(step, 1)
    near = (1.5 * far - 2.5) * far * far + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    weights = jnp.where(far < 1, near, jnp.where(far < 2, outer, 0))
    return weights / weights.sum(1, keepdims=True)


def absolute(
    table: Float[Array, "p q c"],
    size: tuple[int, int],
    extent: Int[Array, "2"] | None = None,
) -> Float[Array, "h w c"]:
    """The learned `table` on a map of `size` (h, w), of which `extent` is the image's.

    `out[y, x] = sum_pq rows[y, p] columns[x, q] table[p, q]` (`cubic_weights`).
    """
    (h, w), (p, q, _) = size, table.shape
    if extent is None and (h, w) == (p, q):
        return table
    count = size if extent is None else jnp.asarray(extent)
    rows, columns = cubic_weights(p, h, count[0]), cubic_weights(q, w, count[1])
    table = table.astype(wide(table.dtype))
    rows, columns = rows.astype(table.dtype), columns.astype(table.dtype)
    return jnp.einsum("yp,pqc,xq->yxc", rows, table, columns, precision="highest")


def relative(
    table: Float[Array, "o d"], size: int, count: Count | None = None
) -> Float[Array, "{size} {size} d"]:
    """The row of the table for query q and key k of an axis of `size` cells: `[q, k]`.

    The table has a row for each offset `q - k` of the grid that it was learned on,
    `2 p - 1` of them, ascending. For `count` cells it is interpolated to `2 count - 1`
    rows, linearly and between the rows' middles (MViTv2's and Detectron2's
    `get_rel_pos`). Offsets beyond repeat the last row.
    """
    old, n = len(table), size if count is None else count
    offset = jnp.arange(1 - size, size, dtype=jnp.int32)
    row = jnp.clip(offset + n - 1, 0, 2 * n - 2)
    if count is not None or old != 2 * n - 1:
        span = jnp.asarray(2 * n - 1, jnp.float32)
        place = (row.astype(jnp.float32) + 0.5) * (old / span) - 0.5
        place = jnp.clip(place, 0, old - 1)
        low = jnp.floor(place).astype(jnp.int32)
        share = (place - low.astype(jnp.float32))[:, None].astype(table.dtype)
        high = take(table, jnp.minimum(low + 1, old - 1))
        rows = take(table, low) * (1 - share) + high * share
    else:
        rows = take(table, row)
    cell = jnp.arange(size, dtype=jnp.int32)
    return take(rows, cell[:, None] - cell[None] + size - 1)
