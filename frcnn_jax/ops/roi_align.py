"""RoIAlign and multilevel RoIAlign for one image.

r RoIs · o output cells a side · s samples a cell a side · h w c feature map
p = h w pixels, or those of all levels and one more · m = r o o cells
k = (2 s)^2 pixels a cell: s x s samples of 2 x 2 corners

RoIAlign is linear in the features,

    out[i] = sum_k weight[i, k] features[index[i, k]],

and index and weight follow from the RoIs alone. The sum over k is written out as
gathers that the compiler fuses into one pass; its transpose is a scatter-add. No
gradient flows to the coordinates of the RoIs (it is zero by definition here).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from frcnn_jax.ops.roi_cells import Size, loops_are_cheap, pair


def roi_align(
    features: Float[Array, "h w c"],
    rois: Float[Array, "r 4"],
    *,
    stride: float | int,
    output_size: Size = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "r oh ow c"]:
    """Average bilinear samples on a regular grid in each cell of each RoI.

    Mask R-CNN, Section 3. `rois` are in input pixels, `stride` of them to a feature
    pixel; each cell has `sampling_ratio`^2 samples. `aligned` puts pixel centres at
    half integers; without it, as in the first implementations, everything is half a
    pixel off and RoIs are at least one feature pixel wide. Samples beyond one pixel
    outside the map are zero. Padded RoIs (zeros) give finite values. Weights and sums
    are float32.

    >>> features = jnp.arange(16.0).reshape(4, 4, 1)
    >>> rois = jnp.array([[0.0, 0.0, 32.0, 32.0]])
    >>> roi_align(features, rois, stride=8, output_size=2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    h, w, c = features.shape
    pixel_map = dict(base=0, height=h, width=w, scale=1 / stride)
    return _align(
        features.reshape(h * w, c),
        rois,
        pixel_map,
        output_size,
        sampling_ratio,
        aligned,
    )


def multilevel_roi_align(
    features: dict[int, Float[Array, "_ _ c"]],
    rois: Float[Array, "r 4"],
    *,
    output_size: Size = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
) -> Float[Array, "r oh ow c"]:
    """Apply `roi_align` to each RoI on the level of `{stride: map}` that fits its size.

    `roi_levels` says which, and what is raised. The levels are laid one after the
    other, so that each RoI is computed once.
    """
    strides = sorted(features)
    maps = [features[s] for s in strides]
    sizes = [m.shape[0] * m.shape[1] for m in maps]
    table = dict(
        base=np.cumsum([0, *sizes[:-1]]),
        height=[m.shape[0] for m in maps],
        width=[m.shape[1] for m in maps],
        scale=1 / np.array(strides, np.float32),
    )
    level = roi_levels(
        rois,
        tuple(strides),
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    pixel_map = {name: jnp.asarray(x)[level] for name, x in table.items()}
    rows = [m.reshape(n, m.shape[2]) for m, n in zip(maps, sizes, strict=True)]
    if len(rows) > 1:
        # And a row that nothing reads but that waits for the RoIs: XLA would lay out
        # the levels as soon as it has them, and keep both until there are RoIs.
        first = jnp.min(level, initial=0)  # 0, but no constant
        rows.append(jnp.full((1, maps[0].shape[2]), first, maps[0].dtype))
    flat = jnp.concatenate(rows)
    return _align(flat, rois, pixel_map, output_size, sampling_ratio, aligned)


def roi_levels(
    rois: Float[Array, "r 4"],
    strides: tuple[int, ...],
    *,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
) -> Int[Array, " r"]:
    """Return the index into ascending `strides` of floor(k0 + log2(sqrt(wh) / 224)).

    FPN, eq. (1), with k0 = `canonical_level` (stride 2^k0) and `canonical_size` for
    224, bounded by the levels there are. Raises ValueError unless the strides are
    consecutive powers of two.

    >>> rois = jnp.array([[0., 0., 224., 224.], [0., 0., 9., 9.]])
    >>> roi_levels(rois, (4, 8, 16)).tolist()
    [2, 0]
    """
    lowest = int(math.log2(strides[0]))
    if tuple(strides) != tuple(2 ** (lowest + i) for i in range(len(strides))):
        raise ValueError(
            f"strides are {strides}, expected consecutive powers of two, ascending"
        )
    size = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    # 1e-6: rounding must not push a RoI of just the canonical size down a level.
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    level = jnp.nan_to_num(level, nan=lowest)
    return (jnp.clip(level, lowest, lowest + len(strides) - 1) - lowest).astype(
        jnp.int32
    )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _align(flat, rois, pixel_map, output_size, samples, aligned):
    """RoIAlign on pixels [p, c]; `pixel_map` says for every RoI where its map lies."""
    if samples < 1:
        raise ValueError(f"sampling_ratio is {samples}, expected a fixed number >= 1")
    oh, ow = pair(output_size)
    pixel_map = {k: jnp.broadcast_to(x, len(rois)) for k, x in pixel_map.items()}
    scale, width = pixel_map["scale"].astype(jnp.float32), pixel_map["width"]
    x1, y1, x2, y2 = lax.stop_gradient(rois.astype(jnp.float32)).T * scale[None]
    y, wy = _corners(y1, y2, oh, samples, pixel_map["height"], aligned)
    x, wx = _corners(x1, x2, ow, samples, width, aligned)
    base = pixel_map["base"][:, None, None, None, None]
    index = base + y[:, :, None, :, None] * width[:, None, None, None, None]
    index = index + x[:, None, :, None, :]
    weight = wy[:, :, None, :, None] * wx[:, None, :, None, :]
    k = (2 * samples) ** 2
    pooled = _weighted_gather(flat, index.reshape(-1, k), weight.reshape(-1, k))
    return pooled.reshape(len(rois), oh, ow, flat.shape[1])


def _corners(start, end, cells, samples, length, aligned):
    """Pixels and weights [r, cells, 2 samples] along one axis of `length` pixels."""
    start, end = (start - 0.5, end - 0.5) if aligned else (start, end)
    size = end - start if aligned else jnp.maximum(end - start, 1)
    cell = size[:, None, None] / cells
    offset = (jnp.arange(samples, dtype=jnp.float32) + 0.5)[None, None]
    at = start[:, None, None] + jnp.arange(cells)[None, :, None] * cell
    at = at + offset * cell / samples
    length = length[:, None, None]
    inside = (at >= -1) & (at <= length)
    at = jnp.maximum(at, 0)
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), length - 1)
    high = jnp.minimum(low + 1, length - 1)
    fraction = at - low  # of no account where low and high are the same pixel
    weight = jnp.stack([1 - fraction, fraction], -1)
    weight = jnp.where(inside[..., None], weight / samples, 0)
    pixel = jnp.where(inside[..., None], jnp.stack([low, high], -1), 0)
    shape = (*at.shape[:2], 2 * samples)
    return pixel.reshape(shape), weight.reshape(shape)


@jax.custom_vjp
def _weighted_gather(flat, index, weight):
    """Sum over k of weight[i, k] flat[index[i, k]]: [p, c], [m, k] twice -> [m, c]."""
    return _gather_rows(flat, index, weight)


def _gather_fwd(flat, index, weight):
    return _gather_rows(flat, index, weight), (flat[:, :0], index, weight)


def _gather_bwd(saved, cotangent):
    empty, index, weight = saved
    grad = _scatter_rows(len(empty))(cotangent, index, weight)
    return grad.astype(empty.dtype), None, None


_weighted_gather.defvjp(_gather_fwd, _gather_bwd)


@jax.custom_batching.custom_vmap
def _gather_rows(flat, index, weight):
    out = jnp.zeros(())
    for k in range(index.shape[1]):
        out += flat[index[:, k]] * weight[:, k, None]
    return out.astype(flat.dtype)


@_gather_rows.def_vmap
def _(size, batched, flat, index, weight):
    index, weight = _batch(size, batched[1:], index, weight)
    if batched[0]:
        index = index + flat.shape[1] * jnp.arange(size)[:, None, None]
        flat = flat.reshape(-1, flat.shape[-1])
    out = _gather_rows(flat, _merge(index), _merge(weight))
    return out.reshape(size, index.shape[1], out.shape[-1]), True


@functools.cache
def _scatter_rows(p):
    @jax.custom_batching.custom_vmap
    def scatter(cotangent, index, weight):
        cotangent = cotangent.astype(jnp.float32)
        # 0, but no constant: that XLA fills as the program starts, and keeps.
        zero = jnp.min(index, initial=0).astype(jnp.float32)
        grad = jnp.full((p, cotangent.shape[-1]), zero)
        if loops_are_cheap():
            return _scatter_in_turn(grad, cotangent, index, weight)
        for k in range(index.shape[1]):
            grad = grad.at[index[:, k]].add(weight[:, k, None] * cotangent)
        return grad

    @scatter.def_vmap
    def _(size, batched, cotangent, index, weight):
        cotangent, index, weight = _batch(size, batched, cotangent, index, weight)
        index = index + p * jnp.arange(size)[:, None, None]
        grad = _scatter_rows(size * p)(_merge(cotangent), _merge(index), _merge(weight))
        return grad.reshape(size, p, grad.shape[1]), True

    return scatter


def _scatter_in_turn(grad, cotangent, index, weight):
    chunk = 7  # cells a step: the rows of the step stay in the cache
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


def _batch(size, batched, *arrays):
    return [
        x if b else jnp.broadcast_to(x, (size, *x.shape))
        for x, b in zip(arrays, batched, strict=True)
    ]


def _merge(x):
    return x.reshape(-1, *x.shape[2:])
