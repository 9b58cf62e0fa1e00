"""The sum of RoIAlign and its transpose, in the form that each platform does fastest.

r RoIs · oh ow output cells · t u pixels that a cell reads, down and across
p pixels of all maps, one after the other · c channels

`gather` is linear in the pixels `flat` [p, c],

    out[r, i, j] = sum_t sum_u y_weight[r, i, t] x_weight[r, j, u]
                               flat[y[r, i, t] + x[r, j, u]],

and `scatter` is its transpose, with `size` for p; each is the derivative of the other.
Without `loops` the t u terms are written out: gathers, which fuse, and scatters, on a
CPU for a few cells at a time. On a TPU both work block by block, each in the on-chip
memory: of RoIs forward, of pixels, once sorted, backward. With `loops` the sums end
with the last pixel of a weight: on a CPU with that of each RoI, elsewhere with that of
all RoIs.
"""

import functools
import itertools

import jax.numpy as jnp
from jax import lax

from frcnn_jax.ops.primitive import (
    Operation,
    linear_pair,
    on_explicit_mesh,
    varying_as,
)

ROIS, PIXELS = 128, 8192  # of a block: what a TPU computes in its on-chip memory


def _gather_rows(flat, y, x, y_weight, x_weight, *, loops):
    """[p, c], [r, oh, t], [r, ow, u] and their weights -> [r, oh, ow, c]."""
    cells = y, x, y_weight, x_weight
    if flat.shape[0] == 0:  # nothing to read
        shape = (*y.shape[:2], x.shape[1], flat.shape[1])
        return (varying_as(flat, jnp.zeros(shape, flat.dtype)),)
    if not loops:
        by_platform = dict(tpu=_gather_in_blocks, default=_gather_written_out)
        return (lax.platform_dependent(flat, *cells, **by_platform),)
    return (
        lax.platform_dependent(
            flat, *cells, cpu=_gather_by_roi, default=_gather_in_loops
        ),
    )


def _gather_written_out(flat, *cells):
    (r, oh, _), (_, ow, _) = cells[0].shape, cells[1].shape
    return _rows_of_cells(flat, *cells).reshape(r, oh, ow, flat.shape[1])


def _gather_in_blocks(flat, *cells):
    """Some RoIs at a time: what they gather stays in the on-chip memory of a TPU.

    Its compiler would write each of the gathers of all RoIs to the main memory. And it
    would move the shape of the result, 7 rows padded to 8, onto each: the barrier.
    """
    (r, oh, _), (_, ow, _), c = cells[0].shape, cells[1].shape, flat.shape[1]

    def rows(cells):
        return lax.optimization_barrier(_rows_of_cells(flat, *cells))

    if not isinstance(r, int) or r <= ROIS:  # symbolic in an export
        return rows(cells).reshape(r, oh, ow, c)
    parts = [jnp.pad(x, ((0, -r % ROIS), (0, 0), (0, 0))) for x in cells]
    parts = [x.reshape(-1, ROIS, *x.shape[1:]) for x in parts]
    return lax.map(rows, parts).reshape(-1, oh, ow, c)[:r]


def _rows_of_cells(flat, *cells):
    """The sum for each of the m = r oh ow cells, [m, c]."""
    index, weight = _all_pairs(*cells)
    out = jnp.zeros((), weight.dtype)
    for k in range(index.shape[1]):
        out += flat[index[:, k]].astype(weight.dtype) * weight[:, k, None]
    shape = index.shape[0], flat.shape[1]  # the first may be symbolic in an export
    return jnp.broadcast_to(out, shape).astype(flat.dtype)


def _gather_in_loops(flat, *cells):
    y, x, dtype = *cells[:2], cells[2].dtype
    out = jnp.zeros((*y.shape[:2], x.shape[1], flat.shape[1]), dtype)

    def add(out, index, weight):
        # Selected, so that a value that is not finite stays with those who read it.
        read = jnp.where(weight != 0, flat[index].astype(dtype), 0)
        return out + read * weight

    return _visit(add, varying_as(flat, out), *cells).astype(flat.dtype)


def _gather_by_roi(flat, *cells):
    def one(cells):
        return _gather_in_loops(flat, *(a[None] for a in cells))[0]

    return lax.map(one, cells)


def _scatter_rows(cotangent, y, x, y_weight, x_weight, *, loops, size, dtype):
    """The transpose of `_gather_rows`: [r, oh, ow, c] -> [size, c] of `dtype`."""
    cells = y, x, y_weight, x_weight
    if size == 0:
        return (varying_as(y, jnp.zeros((0, cotangent.shape[-1]), dtype)),)
    if loops:
        by_platform = dict(cpu=_scatter_by_roi, default=_scatter_in_loops)
    else:
        by_platform = dict(cpu=_scatter_in_turn, default=_scatter_written_out)
    kept = dict(size=size, dtype=dtype)
    forms = {
        platform: functools.partial(_from_zero, add, **kept)
        for platform, add in by_platform.items()
    }
    static = all(isinstance(n, int) for n in (size, *y.shape))  # not in every export
    if not loops and static and y.size and not on_explicit_mesh(cotangent, *cells):
        forms["tpu"] = functools.partial(_scatter_sorted, **kept)
    return (lax.platform_dependent(cotangent, *cells, **forms),)


def _from_zero(add, cotangent, *cells, size, dtype):
    """What `add` adds to zeros, in the dtype of the weights."""
    y, summed = cells[0], cells[2].dtype
    # 0, but no constant: that XLA fills as the program starts, and keeps.
    zero = jnp.min(y, initial=0).astype(summed)
    grad = jnp.full((size, cotangent.shape[-1]), zero)
    return add(grad, cotangent.astype(summed), *cells).astype(dtype)


def _scatter_written_out(grad, cotangent, *cells):
    index, weight = _all_pairs(*cells)
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    for k in range(index.shape[1]):
        grad = grad.at[index[:, k]].add(weight[:, k, None] * cotangent)
    return grad


def _scatter_sorted(cotangent, *cells, size, dtype):
    """Sorts all pixels once, and finishes one block of the result after the other.

    A TPU's compiler would sort for each of the scatters, and add in the main memory; a
    block is in the on-chip memory. The last one ends with the last row, so that it may
    compute some rows of the one before again.
    """
    index, weight = lax.optimization_barrier(_all_pairs(*cells))
    k, c, height = index.shape[1], cotangent.shape[-1], min(PIXELS, size)
    cotangent = cotangent.reshape(-1, c)
    index, place = lax.sort(
        (index.reshape(-1), lax.iota(jnp.int32, index.size)), is_stable=False
    )
    blocks = -(-size // height)
    start = jnp.minimum(height * jnp.arange(blocks, dtype=jnp.int32), size - height)
    first, last = (
        (index[:, None] < bound).sum(0, dtype=jnp.int32)
        for bound in (start[None], start[None] + height)
    )
    index = jnp.pad(index, (0, PIXELS), constant_values=size)
    place = jnp.pad(place, (0, PIXELS))

    def finish(block, out):
        def add(i, total):
            from_here = (first[block] + PIXELS * i,)
            at = lax.dynamic_slice(index, from_here, (PIXELS,)) - start[block]
            cell, pair = jnp.divmod(lax.dynamic_slice(place, from_here, (PIXELS,)), k)
            chosen = jnp.arange(k, dtype=jnp.int32)[None] == pair[:, None]
            by = jnp.where(chosen, weight[cell], 0).sum(1, keepdims=True)
            rows = by * cotangent[cell].astype(by.dtype)
            return total.at[at].add(rows, indices_are_sorted=True, mode="drop")

        trips = -(-(last[block] - first[block]) // PIXELS)
        total = varying_as(cotangent, jnp.zeros((height, c), weight.dtype))
        total = lax.fori_loop(0, trips, add, total).astype(dtype)
        return lax.dynamic_update_slice_in_dim(out, total, start[block], axis=0)

    out = varying_as(cotangent, lax.empty((size, c), dtype))
    return lax.fori_loop(0, blocks, finish, out)


def _scatter_in_turn(grad, cotangent, *cells):
    chunk = 7  # cells a step: the rows of the step stay in the cache
    index, weight = _all_pairs(*cells)
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    m, k = index.shape
    pad = -m % chunk
    cotangent, index, weight = (
        jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, chunk, x.shape[-1])
        for x in (cotangent, index, weight)
    )

    def step(grad, x):
        g, i, w = x
        rows = w[:, :, None] * g[:, None]
        return grad.at[i.reshape(-1)].add(rows.reshape(chunk * k, grad.shape[1])), None

    return lax.scan(step, grad, (cotangent, index, weight))[0]


def _scatter_in_loops(grad, cotangent, *cells):
    def add(grad, index, weight):
        return grad.at[index].add(jnp.where(weight != 0, cotangent * weight, 0))

    return _visit(add, grad, *cells)


def _scatter_by_roi(grad, cotangent, *cells):
    def one(grad, roi):
        return _scatter_in_loops(grad, *(a[None] for a in roi)), None

    return lax.scan(one, grad, (cotangent, *cells))[0]


def _all_pairs(y, x, y_weight, x_weight):
    """Pixels and weights [m, t u] of each of the m = r oh ow cells."""
    index = y[:, :, None, :, None] + x[:, None, :, None, :]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    k = y.shape[2] * x.shape[2]
    return index.reshape(-1, k), weight.reshape(-1, k)


def _visit(body, carry, y, x, y_weight, x_weight):
    """Fold `body(carry, index, weight)` over the pixels of each cell, four at a time.

    `index` is [r, oh, ow] and `weight` [r, oh, ow, 1]. The loops end with the last
    pixel of a weight.
    """

    def steps(weight):
        used = (weight != 0).any((0, 1))
        place = jnp.arange(1, len(used) + 1, dtype=jnp.int32)
        return (jnp.max(jnp.where(used, place, 0), initial=0) + 1) // 2

    def two(a, step):
        return lax.dynamic_slice_in_dim(a, 2 * step, 2, axis=2)

    def rows(i, carry):
        row, row_weight = two(y, i), two(y_weight, i)

        def columns(j, carry):
            column, column_weight = two(x, j), two(x_weight, j)
            for t, u in itertools.product(range(2), repeat=2):
                index = row[:, :, None, t] + column[:, None, :, u]
                weight = row_weight[:, :, None, t] * column_weight[:, None, :, u]
                carry = body(carry, index, weight[..., None])
            return carry

        return lax.fori_loop(jnp.int32(0), steps(x_weight), columns, carry)

    return lax.fori_loop(jnp.int32(0), steps(y_weight), rows, carry)


gather = Operation("roi_align", _gather_rows)
scatter = Operation("roi_align_transpose", _scatter_rows)
linear_pair(gather, scatter)


@gather.batched
def _(images, batched, flat, *cells, loops):
    """All images as one map, one below the other."""
    y, *rest = _batch(images, batched[1:], *cells)
    if batched[0]:
        y = _shift(y, images, flat.shape[1])
        flat = _merge(flat)
    out = gather(flat, _merge(y), *map(_merge, rest), loops=loops)
    return out.reshape(images, rest[0].shape[1], *out.shape[1:])


@scatter.batched
def _(images, batched, cotangent, *cells, size, **static):
    cotangent, y, *rest = _batch(images, batched, cotangent, *cells)
    args = cotangent, _shift(y, images, size), *rest
    grad = scatter(*map(_merge, args), size=images * size, **static)
    return grad.reshape(images, size, grad.shape[1])


def _shift(y, images, rows):
    image = jnp.arange(images, dtype=jnp.int32)
    return y + rows * image[:, None, None, None]


def _batch(images, batched, *arrays):
    return [
        x if b else jnp.broadcast_to(x, (images, *x.shape))
        for x, b in zip(arrays, batched, strict=True)
    ]


def _merge(x):
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
