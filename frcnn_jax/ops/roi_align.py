"""RoIAlign and multilevel RoIAlign for one image.

One deep thing behind two functions: samples, their sum in the form that each platform
does fastest, and the rules that differentiate it.

r RoIs · oh ow output cells · s samples a cell a side · h w c feature map
p = h w pixels, or those of all levels and one more · t pixels that a cell reads a side

RoIAlign is linear in the features, and separable,

    out[i, j] = sum_t sum_u y_weight[i, t] x_weight[j, u]
                            features[y_pixel[i, t], x_pixel[j, u]],

and pixels and weights follow from the RoIs alone. No gradient flows to the coordinates
of the RoIs (it is zero by definition here). There are two rules for the samples:

| `sampling_ratio` | samples a side | pixels t | sums |
| --- | --- | --- | --- |
| s >= 1 | s, for every RoI | 2 s | written out as (2 s)^2 gathers, which fuse |
| 0 | n = ceil(RoI side / cells), up to `max_samples` | n + 1 | loops |

The samples of the second rule are at most a pixel apart, so that n of them read n + 1
neighbours. A loop ends with the largest cell: on a CPU with that of each RoI, elsewhere
with that of all RoIs. On a TPU the first rule's sums are made block by block, each in
the on-chip memory: of RoIs forward, of pixels, once sorted, backward.
"""

import functools
import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from frcnn_jax.ops.modes import take
from frcnn_jax.ops.primitive import (
    Operation,
    linear_pair,
    on_explicit_mesh,
    varying_as,
    wide,
)
from frcnn_jax.ops.roi_cells import Extent, Size, pair, within
from frcnn_jax.types import Array

MAX_SAMPLES = 16  # of the adaptive rule: what costs time is the number that is used
ROIS, PIXELS = 128, 8192  # of a block: what a TPU computes in its on-chip memory


def roi_align(
    features: Float[Array, "h w c"],
    rois: Float[Array, "r 4"],
    *,
    stride: float | int,
    output_size: Size = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    extent: Extent | None = None,
    max_samples: int = MAX_SAMPLES,
) -> Float[Array, "r oh ow c"]:
    """Average bilinear samples on a regular grid in each cell of each RoI.

    Mask R-CNN, Section 3. `rois` are in input pixels, `stride` of them to a feature
    pixel; each cell has `sampling_ratio`^2 samples. With `sampling_ratio=0` it has
    ceil(RoI side / cells) samples along each axis, as Detectron2 and torchvision have
    by default, at most `max_samples` (`rois_beyond` counts the RoIs that ask for more).
    `aligned` puts pixel centres at half integers; without it, as in the first
    implementations, everything is half a pixel off and RoIs are at least one feature
    pixel wide.

    `extent` is the height and width of the image in feature pixels, numbers or traced:
    the result is that of `features[:height, :width]`. By default it is the whole map.
    Samples beyond one pixel outside of it are zero, and all where it has no pixel.
    Padded RoIs (zeros, NaN) give finite values. Weights and sums are float32, or
    float64 for such features. Forward mode, reverse mode and higher derivatives go
    through the features, none through `rois` and `extent`. Raises TypeError for
    features that are not floating point, and ValueError for a number of samples below
    zero.

    >>> features = jnp.arange(16.0).reshape(4, 4, 1)
    >>> rois = jnp.array([[0.0, 0.0, 32.0, 32.0]])
    >>> roi_align(features, rois, stride=8, output_size=2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    h, w, c = features.shape
    height, width = within(extent, h, w)
    pixel_map = dict(base=0, row=w, height=height, width=width, scale=1 / stride)
    flat = features.reshape(h * w, c)
    samples = sampling_ratio, max_samples
    return _align(flat, rois, pixel_map, pair(output_size), samples, aligned)


def multilevel_roi_align(
    features: dict[int, Float[Array, "_ _ c"]],
    rois: Float[Array, "r 4"],
    *,
    output_size: Size = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
    extent: Mapping[int, Extent] | None = None,
    max_samples: int = MAX_SAMPLES,
) -> Float[Array, "r oh ow c"]:
    """Apply `roi_align` to each RoI on the level of `{stride: map}` that fits its size.

    `roi_levels` says which, and what is raised. `extent` is `{stride: (h, w)}`, in
    pixels of each level. The levels are laid one after the other, so that each RoI is
    computed once.
    """
    strides = sorted(features)
    maps = [features[s] for s in strides]
    sizes = [m.shape[0] * m.shape[1] for m in maps]
    extents = [
        within(None if extent is None else extent[s], *features[s].shape[:2])
        for s in strides
    ]
    table = dict(
        base=np.cumsum([0, *sizes[:-1]]),
        row=[m.shape[1] for m in maps],
        height=_column(extents, 0),
        width=_column(extents, 1),
        scale=1 / np.array(strides, np.float32),
    )
    level = roi_levels(
        rois,
        tuple(strides),
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    pixel_map = {name: take(jnp.asarray(x), level) for name, x in table.items()}
    rows = [m.reshape(n, m.shape[2]) for m, n in zip(maps, sizes, strict=True)]
    if len(rows) > 1:
        # And a row that nothing reads but that waits for the RoIs: XLA would lay out
        # the levels as soon as it has them, and keep both until there are RoIs.
        first = jnp.min(level, initial=0).astype(maps[0].dtype)  # 0, but no constant
        rows.append(jnp.full((1, maps[0].shape[2]), first))
    flat = jnp.concatenate(rows)
    samples = sampling_ratio, max_samples
    return _align(flat, rois, pixel_map, pair(output_size), samples, aligned)


def roi_levels(
    rois: Float[Array, "r 4"],
    strides: tuple[int, ...],
    *,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
) -> Int[Array, " r"]:
    """Return the index into ascending `strides` of floor(k0 + log2(sqrt(wh) / 224)).

    FPN, eq. (1), with k0 = `canonical_level` (stride 2^k0) and `canonical_size` for
    224, bounded by the levels there are. Of one level, of any stride, the index is 0.
    Raises ValueError unless several strides are consecutive powers of two.

    >>> rois = jnp.array([[0., 0., 224., 224.], [0., 0., 9., 9.]])
    >>> roi_levels(rois, (4, 8, 16)).tolist()
    [2, 0]
    """
    lowest, count = int(math.log2(strides[0])), len(strides)
    powers = tuple(2 ** (lowest + i) for i in range(count))
    if count > 1 and tuple(strides) != powers:
        raise ValueError(
            f"strides are {strides}, expected consecutive powers of two, ascending"
        )
    x1, y1, x2, y2 = lax.stop_gradient(jnp.asarray(rois)).T
    size = jnp.sqrt(jnp.maximum((x2 - x1) * (y2 - y1), 0))
    # 1e-6: rounding must not push a RoI of just the canonical size down a level.
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    level = jnp.nan_to_num(level, nan=lowest)
    return (jnp.clip(level, lowest, lowest + count - 1) - lowest).astype(jnp.int32)


def rois_beyond(
    rois: Float[Array, "r 4"],
    *,
    stride: float | int | Float[Array, " r"] | Int[Array, " r"],
    output_size: Size = 7,
    aligned: bool = True,
    max_samples: int = MAX_SAMPLES,
) -> Int[Array, ""]:
    """Count the RoIs whose cells have more than `max_samples` samples along an axis.

    These are the ones that `sampling_ratio=0` gives `max_samples` instead of
    ceil(RoI side / cells). `stride` is one number, or one a RoI: with levels,
    `jnp.array(strides)[roi_levels(rois, strides)]`. Padded RoIs (zeros, NaN) are none.

    >>> rois = jnp.array([[0., 0., 224., 224.], [0., 0., 1000., 50.]])
    >>> int(rois_beyond(rois, stride=8))
    1
    """
    rois = jnp.asarray(rois)
    scale = (1 / jnp.asarray(stride, rois.dtype)) * jnp.ones(len(rois), rois.dtype)
    x1, y1, x2, y2 = rois.T * scale[None]
    sides = zip((y1, x1), (y2, x2), pair(output_size), strict=True)
    wanted = [
        _wanted(_span(start, end, aligned)[1], cells) for start, end, cells in sides
    ]
    return (jnp.maximum(*wanted) > max_samples).sum(dtype=jnp.int32)


# Pixels and weights ---------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _align(flat, rois, pixel_map, output_size, samples, aligned):
    """RoIAlign on pixels [p, c]; `pixel_map` says for every RoI where its map lies."""
    (fixed, most), (oh, ow) = samples, output_size
    if fixed < 0 or most < 1:
        raise ValueError(
            f"sampling_ratio is {fixed} and max_samples is {most}: expected a fixed "
            "number of samples >= 1, or 0 for ceil(RoI side / cells), at most "
            "max_samples >= 1"
        )
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise TypeError(
            f"features are {flat.dtype}, expected floating point: RoIAlign averages "
            "them, cast them first"
        )
    dtype = wide(flat.dtype)
    scale = jnp.broadcast_to(jnp.asarray(pixel_map["scale"], dtype), len(rois))
    base, row, height, width = (
        jnp.broadcast_to(jnp.asarray(pixel_map[k]).astype(jnp.int32), len(rois))
        for k in ("base", "row", "height", "width")
    )
    x1, y1, x2, y2 = lax.stop_gradient(rois.astype(dtype)).T * scale[None]
    corners = functools.partial(_corners, samples=fixed)
    if fixed == 0:
        corners = functools.partial(_adaptive_corners, most=most)
    y, y_weight = corners(*_span(y1, y2, aligned), oh, height)
    x, x_weight = corners(*_span(x1, x2, aligned), ow, width)
    y = base[:, None, None] + y * row[:, None, None]
    return _gather(flat, y, x, y_weight, x_weight, loops=fixed == 0)


def _column(extents, axis):
    """One number of each level's (h, w) as int32 [levels], traced or not."""
    return jnp.stack([jnp.asarray(e[axis]).astype(jnp.int32) for e in extents])


def _span(start, end, aligned):
    """Where a RoI begins and how long it is, along one axis, in pixels."""
    start, end = (start - 0.5, end - 0.5) if aligned else (start, end)
    return start, end - start if aligned else jnp.maximum(end - start, 1)


def _corners(start, size, cells, length, *, samples):
    """Pixels and weights [r, cells, 2 samples] along one axis of `length` pixels."""
    at, inside = _samples_at(start, size, cells, length, samples, samples)
    pixel, weight = _two_pixels(at, inside, length)
    return pixel, weight / samples


def _adaptive_corners(start, size, cells, length, *, most):
    """The same with ceil(size / cells) samples, up to `most`: [r, cells, 2 most].

    Places that a cell does not need have weight 0 and come last.
    """
    wanted = _wanted(size, cells)[:, None, None]
    count = jnp.minimum(wanted, most)
    per_cell = jnp.maximum(count, 1)
    at, inside = _samples_at(start, size, cells, length, most, per_cell)
    inside &= jnp.arange(most, dtype=at.dtype)[None, None] < count
    far_pixel, far_weight = _two_pixels(at, inside, length)
    # Up to the bound samples are at most a pixel apart and share their neighbours:
    # the pixels from that of the first sample on.
    last = jnp.maximum(length - 1, 0).astype(at.dtype)[:, None, None]
    at = jnp.clip(at, 0, last)
    first = jnp.nan_to_num(jnp.floor(at[..., :1]))
    pixel = first + jnp.arange(most + 1, dtype=at.dtype)[None, None]
    weight = jnp.maximum(1 - jnp.abs(at[..., None] - pixel[..., None, :]), 0)
    weight = jnp.where(inside[..., None], weight, 0).sum(-2)
    pixel = jnp.minimum(pixel, last).astype(jnp.int32)
    pixel, weight = (
        jnp.pad(a, ((0, 0), (0, 0), (0, most - 1))) for a in (pixel, weight)
    )
    pixel = jnp.where(wanted <= most, pixel, far_pixel)
    return pixel, jnp.where(wanted <= most, weight, far_weight) / per_cell


def _wanted(size, cells):
    """ceil(size / cells) [r], as a float; 0 for a RoI without size, and for NaN."""
    count = jnp.ceil(size / cells)
    # Compilers divide by constants as they like; whole numbers multiply exactly.
    count = jnp.where(size <= (count - 1) * cells, count - 1, count)
    count = jnp.where(size > count * cells, count + 1, count)
    return jnp.where(size > 0, count, 0)


def _samples_at(start, size, cells, length, samples, per_cell):
    """Where the samples of each cell lie [r, cells, samples], and which are inside."""
    start, size = start[:, None, None], size[:, None, None]
    cell = _divide(size, cells)
    offset = jnp.arange(samples, dtype=size.dtype)[None, None] + 0.5
    at = start + jnp.arange(cells, dtype=size.dtype)[None, :, None] * cell
    at = at + _divide(offset * cell, per_cell)
    length = length.astype(at.dtype)[:, None, None]
    return at, (at >= -1) & (at <= length) & (length > 0)


def _divide(a, b):
    """a / b, exact where that is a multiple of 1/2.

    Compilers multiply by 1 / b as they like. One rounding error moves a sample across
    the border beyond which it is zero, and RoIs of whole pixels have samples there.
    """
    found = a / b
    near = jnp.round(2 * found) / 2
    return jnp.where(near * b == a, near, found)


def _two_pixels(at, inside, length):
    """The pixels around each sample and their weights [r, cells, 2 samples]."""
    at = jnp.maximum(at, 0)
    last = jnp.maximum(length - 1, 0)[:, None, None]
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), last)
    high = jnp.minimum(low + 1, last)
    # Of no account where low and high are the same pixel.
    fraction = at - low.astype(at.dtype)
    weight = jnp.stack([1 - fraction, fraction], -1)
    weight = jnp.where(inside[..., None], weight, 0)
    pixel = jnp.where(inside[..., None], jnp.stack([low, high], -1), 0)
    shape = (*at.shape[:2], 2 * at.shape[2])
    return pixel.reshape(shape), weight.reshape(shape)


# The sum and its transpose --------------------------------------------------------


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


_gather = Operation("roi_align", _gather_rows)
_scatter = Operation("roi_align_transpose", _scatter_rows)
linear_pair(_gather, _scatter)


@_gather.batched
def _(images, batched, flat, *cells, loops):
    """All images as one map, one below the other."""
    y, *rest = _batch(images, batched[1:], *cells)
    if batched[0]:
        y = _shift(y, images, flat.shape[1])
        flat = _merge(flat)
    out = _gather(flat, _merge(y), *map(_merge, rest), loops=loops)
    return out.reshape(images, rest[0].shape[1], *out.shape[1:])


@_scatter.batched
def _(images, batched, cotangent, *cells, size, **static):
    cotangent, y, *rest = _batch(images, batched, cotangent, *cells)
    args = cotangent, _shift(y, images, size), *rest
    grad = _scatter(*map(_merge, args), size=images * size, **static)
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
