"""RoIPool for one image (Fast R-CNN, Section 2.1).

r RoIs · o output cells a side · h w c feature map · p = h w pixels

No gradient flows to the coordinates of the RoIs (it is zero by definition here).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num, Shaped

from frcnn_jax.ops import primitive
from frcnn_jax.ops.modes import take
from frcnn_jax.ops.primitive import Operation, linear_pair
from frcnn_jax.ops.roi_cells import Extent, Size, pair, within
from frcnn_jax.types import Array


def roi_pool(
    features: Shaped[Array, "h w c"],
    rois: Num[Array, "r 4"],
    *,
    stride: float | int,
    output_size: Size = 7,
    extent: Extent | None = None,
) -> Shaped[Array, "r oh ow c"]:
    """Take the maximum over each cell of each RoI, quantised to whole feature pixels.

    Fast R-CNN, Section 2.1. Corners are rounded (half away from zero) and inclusive;
    cells run from floor to ceil, so neighbours share a pixel; a cell without pixels is
    0. The gradient goes to the first pixel, row by row, that has the maximum; forward
    mode and higher derivatives follow it.

    `extent` is the height and width of the image in feature pixels, numbers or traced:
    the result is that of `features[:height, :width]`. By default it is the whole map.
    """
    height, width = within(extent, *features.shape[:2])
    scale = np.float32(1 / stride)
    return _pool(features, rois, scale, height, width, *pair(output_size))


@functools.partial(jax.jit, static_argnums=(5, 6))
def _pool(features, rois, scale, height, width, oh, ow):
    h, w, c = features.shape
    rois = jnp.nan_to_num(lax.stop_gradient(rois.astype(jnp.float32)))
    cells = _cells(rois * scale, oh, ow, height, width, w)
    pooled, _ = _find(features.reshape(h * w, c), *cells, width=w)
    return pooled.reshape(len(rois), oh, ow, c)


def _cells(rois, oh, ow, height, width, row):
    """First pixel, height and width of each cell, all int32 [r, oh ow].

    `rois` are in pixels of a map of (height, width), stored in rows of `row` pixels.
    """
    x1, y1, x2, y2 = _round_half_away(rois.T)
    y, high = _quantised_cells(y1, y2, oh, height)
    x, wide = _quantised_cells(x1, x2, ow, width)
    start = y[:, :, None] * row + x[:, None]
    high, wide = (
        jnp.broadcast_to(n, start.shape) for n in (high[:, :, None], wide[:, None])
    )
    return [n.reshape(len(rois), oh * ow) for n in (start, high, wide)]


def _round_half_away(x):
    return jnp.trunc(x + jnp.where(x < 0, -0.5, 0.5))


def _quantised_cells(start, end, cells, length):
    """First pixel and number of pixels of each cell along one axis: int [r, cells]."""
    pixels = jnp.maximum(end - start + 1, 1)
    # Compilers divide by constants as they like, and one rounding error moves a border.
    table = (np.arange(4096, dtype=np.float32) / np.float32(cells)).astype(np.float32)
    index = jnp.minimum(pixels, 4095).astype(jnp.int32)
    looked_up = take(jnp.asarray(table), index)
    size = jnp.where(pixels < 4096, looked_up, pixels / cells)[:, None]
    i = jnp.arange(cells, dtype=jnp.float32)[None]
    length = jnp.asarray(length).astype(jnp.float32)
    low = jnp.clip(jnp.floor(i * size) + start[:, None], 0, length)
    high = jnp.clip(jnp.ceil((i + 1) * size) + start[:, None], 0, length)
    return low.astype(jnp.int32), jnp.maximum(high - low, 0).astype(jnp.int32)


def _find_max(flat, *cells, width):
    """Maxima of the cells of a map [p, c] and the pixels that have them [r, oh ow, c].

    On a CPU RoI by RoI, within the cache; elsewhere all of them in one step.
    """
    by_platform = dict(cpu=_find_roi_by_roi, default=_find_at_once)
    by_platform = {k: functools.partial(f, width) for k, f in by_platform.items()}
    return lax.platform_dependent(flat, *cells, **by_platform)


def _find_at_once(width, flat, start, high, wide):
    def look(y, x, found):
        best, pixel = found
        at = start + jnp.minimum(y, high - 1) * width + jnp.minimum(x, wide - 1)
        better = flat[at] > best
        return (
            jnp.where(better, flat[at], best),
            jnp.where(better, at[..., None], pixel),
        )

    pixel = jnp.broadcast_to(start[..., None], (*start.shape, flat.shape[1]))
    best, pixel = _visit(high, wide, look, (flat[start], pixel))
    return _zero_if_empty(best, high, wide), pixel


def _find_roi_by_roi(width, flat, *cells):
    return lax.map(lambda cells: _find_at_once(width, flat, *cells), cells)


def _read(flat, pixel, start, high, wide, *, width):
    """The values of the pixels [r, oh ow, c] of each cell, 0 in a cell without any."""
    del start, width
    found = flat[pixel, jnp.arange(flat.shape[1], dtype=jnp.int32)[None, None]]
    return (_zero_if_empty(found, high, wide),)


def _add(cotangent, pixel, start, high, wide, *, width, size, dtype):
    """The transpose of `_read`: the sum of the cells' cotangents in each pixel."""
    sums = primitive.wide(dtype)
    cotangent = _zero_if_empty(cotangent.astype(sums), high, wide)
    zero = jnp.min(start, initial=0).astype(sums)  # 0, but no constant
    grad = jnp.full((size, cotangent.shape[-1]), zero)
    by_platform = dict(cpu=_add_roi_by_roi, default=_add_at_once)
    by_platform = {k: functools.partial(f, width) for k, f in by_platform.items()}
    arguments = grad, cotangent, pixel, start, high, wide
    return (lax.platform_dependent(*arguments, **by_platform).astype(dtype),)


def _add_at_once(width, grad, cotangent, pixel, *_):
    del width
    channel = jnp.arange(grad.shape[1], dtype=jnp.int32)[None, None]
    return grad.at[pixel, channel].add(cotangent)


def _add_roi_by_roi(width, grad, *rois):
    """Each RoI's cotangents, to the rows of its cells: no scatter of single values."""

    def add_roi(grad, roi):
        cotangent, pixel, start, high, wide = roi

        def add(y, x, grad):
            at = start + y * width + x
            g = jnp.where(pixel == at[:, None], cotangent, 0)
            at = jnp.where((y < high) & (x < wide), at, len(grad))
            return grad.at[at].add(g, mode="drop")

        return _visit(high, wide, add, grad), None

    return lax.scan(add_roi, grad, rois)[0]


def _zero_if_empty(values, high, wide):
    empty = (high * wide == 0)[..., None]
    return jnp.where(empty, jnp.zeros((), values.dtype), values)


def _visit(high, wide, body, carry):
    """Fold `body(y, x, carry)` over the pixels of the largest cell, row by row."""
    zero, rows, columns = jnp.int32(0), high.max(initial=0), wide.max(initial=0)

    def visit_row(y, carry):
        return lax.fori_loop(zero, columns, lambda x, c: body(y, x, c), carry)

    return lax.fori_loop(zero, rows, visit_row, carry)


_find = Operation("roi_pool", _find_max)
_read_pixels = Operation("roi_pool_read", _read)
_add_to_pixels = Operation("roi_pool_read_transpose", _add)
linear_pair(_read_pixels, _add_to_pixels)


@_find.derivatives
def _(args, tangents, found, *, width):
    flat_tangent, *_ = tangents
    _, *cells = args
    return _read_pixels(flat_tangent, found[1], *cells, width=width), None
