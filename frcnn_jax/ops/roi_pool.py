"""RoIPool for one image (Fast R-CNN, Section 2.1).

r RoIs · o output cells a side · h w c feature map · p = h w pixels

No gradient flows to the coordinates of the RoIs (it is zero by definition here).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from frcnn_jax.ops.roi_cells import Size, loops_are_cheap, pair


def roi_pool(
    features: Float[Array, "h w c"],
    rois: Float[Array, "r 4"],
    *,
    stride: float | int,
    output_size: Size = 7,
) -> Float[Array, "r oh ow c"]:
    """Take the maximum over each cell of each RoI, quantised to whole feature pixels.

    Fast R-CNN, Section 2.1. Corners are rounded (half away from zero) and inclusive;
    cells run from floor to ceil, so neighbours share a pixel; a cell without pixels is
    0. The gradient goes to the first pixel, row by row, that has the maximum.
    """
    return _pool(features, rois, np.float32(1 / stride), *pair(output_size))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _pool(features, rois, scale, oh, ow):
    h, w, c = features.shape
    rois = jnp.nan_to_num(lax.stop_gradient(rois.astype(jnp.float32)))
    x1, y1, x2, y2 = _round_half_away(rois.T * scale)
    y, rows = _quantised_cells(y1, y2, oh, h)
    x, columns = _quantised_cells(x1, x2, ow, w)
    start = y[:, :, None] * w + x[:, None]
    rows, columns = (
        jnp.broadcast_to(n, start.shape) for n in (rows[:, :, None], columns[:, None])
    )
    cells = [n.reshape(-1, oh * ow) for n in (start, rows, columns)]
    if not loops_are_cheap():  # all RoIs in one step
        cells = [n.reshape(1, -1) for n in cells]
    pooled = _cell_max(features.reshape(h * w, c), jnp.int32(w), *cells)
    return pooled.reshape(len(rois), oh, ow, c)


def _round_half_away(x):
    return jnp.trunc(x + jnp.where(x < 0, -0.5, 0.5))


def _quantised_cells(start, end, cells, length):
    """First pixel and number of pixels of each cell along one axis: int [r, cells]."""
    pixels = jnp.maximum(end - start + 1, 1)
    # Compilers divide by constants as they like, and one rounding error moves a border.
    table = (np.arange(4096, dtype=np.float32) / np.float32(cells)).astype(np.float32)
    looked_up = jnp.asarray(table)[jnp.minimum(pixels, 4095).astype(jnp.int32)]
    size = jnp.where(pixels < 4096, looked_up, pixels / cells)[:, None]
    i = jnp.arange(cells, dtype=jnp.float32)[None]
    low = jnp.clip(jnp.floor(i * size) + start[:, None], 0, length)
    high = jnp.clip(jnp.ceil((i + 1) * size) + start[:, None], 0, length)
    return low.astype(jnp.int32), jnp.maximum(high - low, 0).astype(jnp.int32)


@jax.custom_vjp
def _cell_max(flat, width, start, rows, columns):
    """[p, c] and three of int [chunks, cells] -> maxima [chunks, cells, c]."""
    return _find_max(flat, width, start, rows, columns)[0]


def _cell_max_fwd(flat, *cells):
    out, pixel = _find_max(flat, *cells)
    return out, (flat[:, :0], pixel, cells)


def _cell_max_bwd(saved, cotangent):
    empty, pixel, cells = saved
    grad = _add_at_max(empty, cotangent.astype(jnp.float32), pixel, *cells)
    return grad.astype(empty.dtype), None, None, None, None


_cell_max.defvjp(_cell_max_fwd, _cell_max_bwd)


@jax.custom_batching.sequential_vmap
def _find_max(flat, width, start, rows, columns):
    """Maxima of the cells and the pixels that have them, both [chunks, cells, c]."""

    def find(cells):
        start, rows, columns = cells

        def look(y, x, found):
            best, pixel = found
            at = start + jnp.minimum(y, rows - 1) * width + jnp.minimum(x, columns - 1)
            better = flat[at] > best
            return jnp.where(better, flat[at], best), jnp.where(
                better, at[:, None], pixel
            )

        first = (
            flat[start],
            jnp.broadcast_to(start[:, None], (len(start), flat.shape[1])),
        )
        best, pixel = _visit(rows, columns, look, first)
        return jnp.where((rows * columns > 0)[:, None], best, 0), pixel

    return lax.map(find, (start, rows, columns))


@jax.custom_batching.sequential_vmap
def _add_at_max(empty, cotangent, pixel, width, start, rows, columns):
    """Sum each cell's cotangent into the pixel of its maximum: [p, c]."""
    p, c = len(empty), cotangent.shape[-1]
    grad = jnp.zeros((p, c))
    if not loops_are_cheap():
        g = jnp.where((rows * columns > 0)[..., None], cotangent, 0).reshape(-1, c)
        return grad.at[pixel.reshape(-1, c), jnp.arange(c)[None]].add(g)

    def add_chunk(grad, chunk):
        cotangent, pixel, start, rows, columns = chunk

        def add(y, x, grad):
            at = start + y * width + x
            g = jnp.where(pixel == at[:, None], cotangent, 0)
            at = jnp.where((y < rows) & (x < columns), at, p)
            return grad.at[at].add(g, mode="drop")

        return _visit(rows, columns, add, grad), None

    return lax.scan(add_chunk, grad, (cotangent, pixel, start, rows, columns))[0]


def _visit(rows, columns, body, carry):
    """Fold `body(y, x, carry)` over the pixels of the largest cell, row by row."""

    def visit_row(y, carry):
        return lax.fori_loop(
            0, columns.max(initial=0), lambda x, c: body(y, x, c), carry
        )

    return lax.fori_loop(0, rows.max(initial=0), visit_row, carry)
