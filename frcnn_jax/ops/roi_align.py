"""RoIAlign and multilevel RoIAlign for one image.

r RoIs · oh ow output cells · s samples a cell a side · h w c feature map
p = h w pixels, or those of all levels and one more · t pixels that a cell reads a side

RoIAlign is linear in the features, and separable,

    out[i, j] = sum_t sum_u y_weight[i, t] x_weight[j, u]
                            features[y_pixel[i, t], x_pixel[j, u]],

and pixels and weights follow from the RoIs alone; they are made here, and
`ops/roi_sums.py` has the sum and its transpose. No gradient flows to the coordinates of
the RoIs (it is zero by definition here). There are two rules for the samples:

| `sampling_ratio` | samples a side | pixels t | sums |
| --- | --- | --- | --- |
| s >= 1 | s, for every RoI | 2 s | written out |
| 0 | n = ceil(RoI side / cells), up to `max_samples` | n + 1 | loops |

The samples of the second rule are at most a pixel apart, so that n of them read n + 1
neighbours.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from frcnn_jax.ops.modes import take
from frcnn_jax.ops.primitive import wide
from frcnn_jax.ops.roi_cells import Extent, Size, pair, within
from frcnn_jax.ops.roi_sums import gather
from frcnn_jax.types import Array

MAX_SAMPLES = 16  # of the adaptive rule: what costs time is the number that is used


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
    return gather(flat, y, x, y_weight, x_weight, loops=fixed == 0)


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
