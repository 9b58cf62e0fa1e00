"""RoIAlign and RoIPool against loops over cells, samples and pixels in NumPy.

One deep thing: both poolings have the same references, extents and gradients.
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.ops import roi_align as ops
from frcnn_jax.ops import roi_pool, roi_sums


def bilinear(features, y, x):
    """One sample: zero more than a pixel outside the map, clamped at its borders."""
    h, w, c = features.shape
    if not (-1 <= y <= h and -1 <= x <= w):
        return np.zeros(c)
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    y, x = y - top, x - left
    above = (1 - x) * features[top, left] + x * features[top, right]
    below = (1 - x) * features[bottom, left] + x * features[bottom, right]
    return (1 - y) * above + y * below


def align_loop(features, rois, stride, oh, ow, samples, aligned):
    out = np.zeros((len(rois), oh, ow, features.shape[-1]))
    for r, roi in enumerate(rois.astype(float) / stride):
        x1, y1, x2, y2 = roi - (0.5 if aligned else 0)
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        for i, j in np.ndindex(oh, ow):
            for a, b in np.ndindex(samples, samples):
                y = y1 + (i + (a + 0.5) / samples) * h / oh
                x = x1 + (j + (b + 0.5) / samples) * w / ow
                out[r, i, j] += bilinear(features, y, x) / samples**2
    return out


def pool_loop(features, rois, stride, oh, ow):
    """Maxima and the pixel of each; float32 borders as the published kernels have."""
    h, w, c = features.shape
    out = np.zeros((len(rois), oh, ow, c), np.float32)
    where = np.full((*out.shape, 2), -1)
    scaled = rois * np.float32(1 / stride)
    corners = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    for r, (x1, y1, x2, y2) in enumerate(corners.astype(int)):
        sizes = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        cell_h = np.float32(sizes[0]) / np.float32(oh)
        cell_w = np.float32(sizes[1]) / np.float32(ow)
        for i, j in np.ndindex(oh, ow):
            top = min(max(math.floor(np.float32(i) * cell_h) + y1, 0), h)
            bottom = min(max(math.ceil(np.float32(i + 1) * cell_h) + y1, 0), h)
            left = min(max(math.floor(np.float32(j) * cell_w) + x1, 0), w)
            right = min(max(math.ceil(np.float32(j + 1) * cell_w) + x1, 0), w)
            if bottom <= top or right <= left:
                continue
            cell = features[top:bottom, left:right].reshape(-1, c)
            at = cell.argmax(0)  # the first, row by row
            out[r, i, j] = cell.max(0)
            where[r, i, j, :, 0] = top + at // (right - left)
            where[r, i, j, :, 1] = left + at % (right - left)
    return out, where


def some_rois(rng, n, height, width):
    """RoIs of all sizes, inside and across and outside the image; one empty."""
    a = rng.uniform(-0.3, 1.3, (n, 2, 2)) * (width, height)
    rois = np.concatenate([a.min(1), a.max(1)], 1)
    rois[: n // 2] = rois[: n // 2].clip(0, [width, height] * 2)
    rois[0] = 0
    return rois.astype(np.float32)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("output_size", "samples", "stride"), [(7, 2, 16), ((2, 3), 1, 4.0), (3, 3, 10)]
)
def test_roi_align_equals_the_loop(rng, aligned, output_size, samples, stride):
    features = rng.normal(size=(11, 17, 3)).astype(np.float32)
    rois = some_rois(rng, 24, 11 * stride, 17 * stride)
    got = ops.roi_align(
        jnp.asarray(features),
        jnp.asarray(rois),
        stride=stride,
        output_size=output_size,
        sampling_ratio=samples,
        aligned=aligned,
    )
    oh, ow = output_size if isinstance(output_size, tuple) else (output_size,) * 2
    expected = align_loop(features, rois, stride, oh, ow, samples, aligned)
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_roi_align_by_hand():
    # On the plane f(y, x) = 10 y + x a cell is the value at its centre; pixel (y, x)
    # lies at (y + .5, x + .5) when aligned, at (y, x) when not.
    y, x = np.mgrid[:8, :8].astype(np.float32)
    plane = jnp.asarray(10 * y + x)[..., None]
    rois = jnp.array([[4.0, 8, 20, 24]])  # cell centres: x 2 and 4, y 3 and 5 pixels
    got = ops.roi_align(plane, rois, stride=4, output_size=2)[0, ..., 0]
    np.testing.assert_allclose(got, [[26.5, 28.5], [46.5, 48.5]])
    shifted = ops.roi_align(plane, rois, stride=4, output_size=2, aligned=False)
    np.testing.assert_allclose(shifted[0, ..., 0] - got, np.full((2, 2), 5.5))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
def test_roi_align_on_the_smallest_maps(rng, shape):
    features = rng.normal(size=(*shape, 2)).astype(np.float32)
    rois = some_rois(rng, 10, 16 * shape[0], 16 * shape[1])
    got = ops.roi_align(jnp.asarray(features), jnp.asarray(rois), stride=16)
    expected = align_loop(features, rois, 16, 7, 7, 2, True)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("op", [ops.roi_align, roi_pool.roi_pool])
def test_no_or_one_roi(op, n):
    def total(features):
        return op(features, jnp.ones((n, 4)), stride=8).sum()

    features = jnp.ones((3, 4, 2))
    assert op(features, jnp.ones((n, 4)), stride=8).shape == (n, 7, 7, 2)
    assert np.isfinite(jax.grad(total)(features)).all()


def matrix_of(op, shape, rois, **options):
    """The linear map of a pooling operator, column by column."""
    basis = np.eye(math.prod(shape), dtype=np.float32).reshape(-1, *shape)
    apply = jax.jit(jax.vmap(lambda f: op(f, rois, **options)))
    return np.asarray(apply(jnp.asarray(basis))).reshape(len(basis), -1)


@pytest.mark.parametrize("samples", [2, 0])
def test_roi_align_backward_is_the_transpose(rng, samples):
    rois = jnp.asarray(some_rois(rng, 9, 50, 60))
    shape, options = (5, 6, 2), dict(stride=10, output_size=3, sampling_ratio=samples)
    forward = functools.partial(ops.roi_align, rois=rois, **options)
    out, backward = jax.vjp(forward, jnp.asarray(rng.normal(size=shape), jnp.float32))
    cotangent = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
    (grad,) = backward(cotangent)
    matrix = matrix_of(ops.roi_align, shape, rois, **options)
    np.testing.assert_allclose(grad.ravel(), matrix @ cotangent.ravel(), atol=1e-4)


@pytest.mark.parametrize("pixels", [(4, 4), (6, 4), (2, 6)])
def test_all_formulations_are_one_sum_and_its_transpose(rng, pixels, monkeypatch):
    """Each platform's, on any pixels and weights, some of them zero."""
    r, p, c, sides = 5, 30, 3, (2, 3)
    cells = [rng.integers(0, 15, (r, o, t)) for o, t in zip(sides, pixels, strict=True)]
    weights = [rng.normal(size=x.shape) for x in cells]
    weights[0][0], weights[1][1, :, 2:] = 0, 0
    index = cells[0][:, :, None, :, None] + cells[1][:, None, :, None, :]
    weight = weights[0][:, :, None, :, None] * weights[1][:, None, :, None, :]
    flat, g = rng.normal(size=(p, c)), rng.normal(size=(r, *sides, c))
    expected, expected_grad = np.zeros((r, *sides, c)), np.zeros((p, c))
    for place in np.ndindex(index.shape):
        expected[place[:3]] += weight[place] * flat[index[place]]
        expected_grad[index[place]] += weight[place] * g[place[:3]]
    arguments = [jnp.int32(x) for x in cells] + [jnp.float32(w) for w in weights]
    monkeypatch.setattr(roi_sums, "ROIS", 2)  # several blocks, the last one not whole
    monkeypatch.setattr(roi_sums, "PIXELS", 7)
    for gather in (
        *(roi_sums._gather_written_out, roi_sums._gather_in_blocks),
        *(roi_sums._gather_in_loops, roi_sums._gather_by_roi),
    ):
        found = jax.jit(gather)(jnp.float32(flat), *arguments)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for scatter in (
        *(roi_sums._scatter_written_out, roi_sums._scatter_in_turn),
        *(roi_sums._scatter_in_loops, roi_sums._scatter_by_roi),
    ):
        found = jax.jit(scatter)(jnp.zeros((p, c)), jnp.float32(g), *arguments)
        np.testing.assert_allclose(found, expected_grad, atol=1e-5)
    for size in (p, 28, 3):  # some blocks, no row twice, one block
        kept = dict(size=size, dtype=jnp.float32)
        found = jax.jit(functools.partial(roi_sums._scatter_sorted, **kept))(
            jnp.float32(g), *arguments
        )
        np.testing.assert_allclose(found, expected_grad[:size], atol=1e-5)


def test_no_gradient_to_the_rois(rng):
    features = jnp.asarray(rng.normal(size=(6, 6, 2)), jnp.float32)
    rois = jnp.asarray(some_rois(rng, 5, 60, 60))
    for op in (ops.roi_align, roi_pool.roi_pool):
        grad = jax.grad(lambda rois, op=op: (op(features, rois, stride=10) ** 2).sum())
        np.testing.assert_array_equal(grad(rois), np.zeros((5, 4)))


@pytest.mark.parametrize("op", [ops.roi_align, roi_pool.roi_pool])
def test_padded_rois_neither_read_nor_write(rng, op):
    features = jnp.asarray(rng.normal(size=(6, 6, 2)), jnp.float32)
    rois = some_rois(rng, 6, 60, 60)
    padded = jnp.asarray(np.concatenate([rois, np.full((3, 4), np.nan, np.float32)]))

    def total(features, rois):
        out = op(features, rois, stride=10)
        return (
            jnp.where(jnp.arange(len(out))[:, None, None, None] < 6, out, 0) ** 2
        ).sum()

    assert np.isfinite(op(features, padded, stride=10)).all()
    value, grad = jax.value_and_grad(total)(features, padded)
    expected, expected_grad = jax.value_and_grad(total)(features, jnp.asarray(rois))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [ops.roi_align, roi_pool.roi_pool])
def test_vmap_and_its_gradient_are_loops_over_images(rng, op):
    features = jnp.asarray(rng.normal(size=(3, 6, 8, 2)), jnp.float32)
    rois = jnp.asarray(np.stack([some_rois(rng, 7, 60, 80) for _ in range(3)]))

    def loss(features, rois):
        return (op(features, rois, stride=10) ** 2).sum()

    both = jax.value_and_grad(loss)
    one = [both(f, r) for f, r in zip(features, rois, strict=True)]
    loop = tuple(np.stack(x) for x in zip(*one, strict=True))
    mapped = jax.jit(jax.vmap(both))(features, rois)
    np.testing.assert_allclose(mapped[0], loop[0], rtol=1e-5)
    np.testing.assert_allclose(mapped[1], loop[1], atol=2e-5)
    grad = jax.grad(lambda f: jax.vmap(loss)(f, rois).sum())(features)
    np.testing.assert_allclose(grad, loop[1], atol=2e-5)
    # One image, many sets of RoIs; and one set of RoIs, many images.
    grad = jax.grad(lambda f: jax.vmap(loss, (None, 0))(f, rois).sum())(features[0])
    expected = sum(both(features[0], r)[1] for r in rois)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=4e-5)
    shared = jax.vmap(loss, (0, None))(features, rois[0])
    np.testing.assert_allclose(shared, [loss(f, rois[0]) for f in features], rtol=1e-5)


@pytest.mark.parametrize("op", [ops.roi_align, roi_pool.roi_pool])
def test_half_precision_features_keep_their_type(rng, op):
    features = jnp.asarray(rng.normal(size=(6, 8, 4)), jnp.bfloat16)
    rois = jnp.asarray(some_rois(rng, 7, 60, 80))

    def total(features):
        return (op(features, rois, stride=10).astype(jnp.float32) ** 2).sum()

    out = op(features, rois, stride=10)
    exact = op(features.astype(jnp.float32), rois, stride=10)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))  # one rounding
    grad = jax.grad(total)(features)
    assert grad.dtype == jnp.bfloat16
    expected = jax.grad(total)(features.astype(jnp.float32))
    np.testing.assert_allclose(grad.astype(jnp.float32), expected, rtol=0.05, atol=0.3)


def test_what_roi_align_refuses():
    rois = jnp.ones((1, 4))
    for options in (dict(sampling_ratio=-1), dict(max_samples=0)):
        with pytest.raises(ValueError, match="expected a fixed number of samples"):
            ops.roi_align(jnp.ones((2, 2, 1)), rois, stride=1, **options)


# The adaptive rule ----------------------------------------------------------------


def adaptive_loop(features, rois, stride, oh, ow, most, aligned):
    """Each RoI by the loop of a fixed number, which may differ along the axes."""
    out = np.zeros((len(rois), oh, ow, features.shape[-1]))
    for r, roi in enumerate(rois.astype(float) / stride):
        x1, y1, x2, y2 = roi - (0.5 if aligned else 0)
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        n, m = (min(math.ceil(side), most) for side in (h / oh, w / ow))
        for i, j in np.ndindex(oh, ow):
            for a, b in np.ndindex(max(n, 0), max(m, 0)):
                y = y1 + (i + (a + 0.5) / n) * h / oh
                x = x1 + (j + (b + 0.5) / m) * w / ow
                out[r, i, j] += bilinear(features, y, x) / (n * m)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_adaptive_roi_align_equals_the_loop(rng, aligned, most):
    """Exact up to the bound; beyond it the bound is the number of samples."""
    features = rng.normal(size=(11, 17, 3)).astype(np.float32)
    rois = some_rois(rng, 24, 44, 68)
    got = ops.roi_align(
        jnp.asarray(features),
        jnp.asarray(rois),
        stride=4,
        output_size=(2, 3),
        sampling_ratio=0,
        aligned=aligned,
        max_samples=most,
    )
    expected = adaptive_loop(features, rois, 4, 2, 3, most, aligned)
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_rois_beyond_the_bound_are_counted_by_hand():
    # Two cells a side, stride 10: 40 pixels are 2 samples, 41 are 3.
    rois = [[0, 0, 40, 40], [0, 0, 41, 20], [7, 0, 20, 41], [0, 0, 0, 0], [9, 9, 5, 5]]
    rois = jnp.asarray([*rois, [np.nan] * 4], jnp.float32)
    count = functools.partial(ops.rois_beyond, rois, output_size=2)
    assert count(stride=10, max_samples=2) == 2
    assert count(stride=10, max_samples=3) == 0
    assert count(stride=10) == 0
    stride = jnp.array([5, 10, 20, 1, 1, 1])  # 4, 3 and 2 samples
    assert count(stride=stride, max_samples=2) == 2
    assert count(stride=stride, max_samples=2).dtype == jnp.int32
    tall = functools.partial(ops.rois_beyond, rois, output_size=(4, 1), stride=10)
    assert tall(max_samples=3) == 2  # widths 40 and 41


@pytest.mark.parametrize("cells", [3, 7, 14])
def test_a_side_of_whole_cells_has_no_sample_more(cells):
    """98 / 7 is 14, also for a compiler that multiplies by 1 / 7."""
    sides = cells * np.arange(1, 60, dtype=np.float32)

    @jax.jit
    def samples(sides):
        rois = jnp.stack([0 * sides, 0 * sides, sides, sides], 1)
        return ops._wanted(ops._span(rois[:, 0], rois[:, 2], False)[1], cells)

    np.testing.assert_array_equal(samples(sides), np.arange(1, 60))
    beyond = np.nextafter(sides, np.float32(np.inf))
    np.testing.assert_array_equal(samples(beyond), np.arange(2, 61))


def test_a_larger_bound_makes_no_larger_program():
    def text(most):
        align = functools.partial(
            ops.roi_align, stride=4, sampling_ratio=0, max_samples=most
        )
        both = jax.jit(jax.value_and_grad(lambda f, r: (align(f, r) ** 2).sum()))
        shapes = (20, 30, 8), (16, 4)
        lowered = both.lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        return lowered.as_text()

    assert abs(len(text(64)) - len(text(4))) < 0.02 * len(text(4))


def check_derivatives(loss, x, rng, step=1e-5):
    """Forward, reverse, and each over reverse, beside central differences."""
    x, v, w = (jnp.asarray(a) for a in (x, *rng.normal(size=(2, *x.shape))))

    @jax.jit
    def both(x, v, w):
        grad = jax.grad(loss)
        slope = lambda x: jnp.vdot(grad(x), w)  # noqa: E731
        ours = (
            jnp.vdot(grad(x), v),
            jax.jvp(loss, (x,), (v,))[1],
            jnp.vdot(jax.jvp(grad, (x,), (v,))[1], w),
            jnp.vdot(jax.grad(slope)(x), v),
        )
        first, second = (
            (f(x + step * v) - f(x - step * v)) / (2 * step) for f in (loss, slope)
        )
        return ours, (first, first, second, second)

    np.testing.assert_allclose(*both(x, v, w), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("samples", "aligned"), [(2, True), (0, True), (0, False)])
def test_roi_align_derivatives_in_float64(rng, samples, aligned):
    """Both modes and both orders, beside finite differences; values beside the loop."""
    rois, features = some_rois(rng, 7, 44, 60), rng.normal(size=(11, 15, 2))
    with jax.enable_x64(True):
        align = functools.partial(
            ops.roi_align,
            rois=jnp.asarray(rois, jnp.float64),
            stride=4,
            output_size=(2, 3),
            sampling_ratio=samples,
            aligned=aligned,
        )
        out = jax.jit(align)(jnp.asarray(features))
        assert out.dtype == jnp.float64
        check_derivatives(lambda f: jnp.sin(align(f)).sum(), features, rng)
    loop = align_loop if samples else adaptive_loop
    expected = loop(np.asarray(features), rois, 4, 2, 3, samples or 16, aligned)
    np.testing.assert_allclose(out, expected, atol=1e-12)


# The extent -----------------------------------------------------------------------


def cropped(op, features, rois, extent, **options):
    h, w = extent
    return op(features[:h, :w], rois, **options)


@pytest.mark.parametrize("samples", [2, 0, None])
def test_an_extent_is_a_smaller_map_whatever_lies_beyond(rng, samples):
    op, options = roi_pool.roi_pool, dict(stride=4, output_size=3)
    if samples is not None:
        op, options = ops.roi_align, dict(options, sampling_ratio=samples)
    features = jnp.asarray(rng.normal(size=(2, 9, 12, 3)), jnp.float32)
    rois = jnp.asarray(some_rois(rng, 10, 36, 48))
    extents = jnp.array([[5, 12], [9, 7]])

    @jax.jit
    @jax.vmap
    def both(features, extent):
        inside = jnp.arange(9)[:, None] < extent[0]
        inside &= jnp.arange(12)[None] < extent[1]
        features = jnp.where(inside[..., None], features, jnp.nan)
        align = functools.partial(op, rois=rois, extent=tuple(extent), **options)
        out, pull = jax.vjp(align, features)
        return out, pull(jnp.cos(out))[0]

    out, grad = both(features, extents)
    for i, (h, w) in enumerate(extents.tolist()):
        crop = functools.partial(op, rois=rois, **options)
        expected, pull = jax.vjp(crop, features[i, :h, :w])
        np.testing.assert_allclose(out[i], expected, atol=1e-6)
        np.testing.assert_allclose(
            grad[i, :h, :w], pull(jnp.cos(expected))[0], atol=1e-5
        )
        assert not grad[i, h:].any() and not grad[i, :, w:].any()


def test_multilevel_extents_are_smaller_maps(rng):
    features = {
        s: jnp.asarray(rng.normal(size=(64 // s, 96 // s, 3)), jnp.float32)
        for s in (8, 16)
    }
    rois = jnp.asarray(some_rois(rng, 20, 40, 64))
    extent = {8: (5, 8), 16: (3, 4)}
    align = functools.partial(
        ops.multilevel_roi_align, rois=rois, canonical_size=40.0, sampling_ratio=0
    )
    crops = {s: m[: extent[s][0], : extent[s][1]] for s, m in features.items()}
    expected = align(crops)
    assert np.abs(align(features) - expected).max() > 0.1
    traced = jax.jit(lambda e: align(features, extent=e))
    np.testing.assert_allclose(align(features, extent=extent), expected, atol=1e-6)
    np.testing.assert_allclose(traced(extent), expected, atol=1e-6)


@pytest.mark.parametrize("samples", [2, 0, None])
def test_an_image_of_no_extent_is_zero(samples):
    op, options = roi_pool.roi_pool, dict(stride=8, output_size=3)
    if samples is not None:
        op, options = ops.roi_align, dict(options, sampling_ratio=samples)
    rois = jnp.array([[-8.0, -8, 24, 24]])  # samples within a pixel of the corner
    for extent in ((0, 0), (0, 4), (3, 0)):
        assert not op(jnp.ones((3, 4, 2)), rois, extent=extent, **options).any()
    assert op(jnp.ones((3, 4, 2)), rois, extent=(1, 1), **options).any()


def test_an_extent_ends_with_the_map(rng):
    """As a slice does: what is stored behind a map is not the map's."""
    rois, large = jnp.asarray(some_rois(rng, 12, 40, 64)), (99, 99)
    features = {
        s: jnp.asarray(rng.normal(size=(40 // s, 64 // s, 3)), jnp.float32)
        for s in (4, 8)
    }
    pool = functools.partial(roi_pool.roi_pool, stride=8, output_size=2)
    found = pool(features[8], rois, extent=large)
    np.testing.assert_array_equal(found, pool(features[8], rois))
    align = functools.partial(
        ops.multilevel_roi_align, features, rois, output_size=2, canonical_size=15.0
    )
    np.testing.assert_array_equal(align(extent={4: large, 8: large}), align())


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_roi_align_refuses_integers_and_roi_pool_keeps_them(dtype):
    features, rois = jnp.ones((3, 4, 2), dtype), jnp.array([[0.0, 0, 24, 24]])
    with pytest.raises(TypeError, match="features are .*, expected floating point"):
        inspect.unwrap(ops.roi_align)(features, rois, stride=8)
    if dtype != jnp.bool_:
        pooled = roi_pool.roi_pool(features, rois, stride=8, output_size=2)
        assert pooled.dtype == dtype and (pooled == 1).all()


# Levels ---------------------------------------------------------------------------


def test_roi_levels_by_hand():
    sides = np.array([0, 1, 55, 56, 111.9, 112, 223.9, 224, 447, 448, 5000])
    rois = np.stack([sides * 0 + 7, sides * 0 + 3, 7 + sides, 3 + sides], 1)
    levels = ops.roi_levels(jnp.asarray(rois, jnp.float32), (4, 8, 16, 32))
    assert levels.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    tall = jnp.array([[0.0, 0, 56, 896]])  # the square root of the area counts
    assert ops.roi_levels(tall, (4, 8, 16, 32)).tolist() == [2]
    level = ops.roi_levels(tall, (8, 16), canonical_size=112, canonical_level=3)
    assert level.tolist() == [1]
    assert ops.roi_levels(jnp.full((1, 4), jnp.nan), (4, 8)).tolist() == [0]


@pytest.mark.parametrize("strides", [(4, 16), (8, 4), (3, 6)])
def test_roi_levels_refuses_other_strides(strides):
    with pytest.raises(ValueError, match="consecutive powers of two"):
        ops.roi_levels(jnp.zeros((1, 4)), strides)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_one_level_of_any_stride_is_roi_align(rng, sampling_ratio):
    """As of a ViT's patches of 14 pixels; its levels have no rule to follow."""
    features = jnp.asarray(rng.normal(size=(5, 7, 3)), jnp.float32)
    rois = jnp.asarray(some_rois(rng, 30, 70, 98))
    options = dict(sampling_ratio=sampling_ratio)
    found = ops.multilevel_roi_align({14: features}, rois, **options)
    expected = ops.roi_align(features, rois, stride=14, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ops.roi_levels(rois, (14,)).tolist() == [0] * 30


def test_multilevel_takes_each_roi_from_its_level(rng):
    strides = (4, 8, 16, 32)
    features = {
        s: jnp.asarray(rng.normal(size=(64 // s, 96 // s, 3)), jnp.float32)
        for s in strides
    }
    rois = jnp.asarray(some_rois(rng, 30, 64, 96))
    cotangent = jnp.asarray(rng.normal(size=(30, 7, 7, 3)), jnp.float32)
    options = dict(canonical_size=15.0, canonical_level=3)
    level = ops.roi_levels(rois, strides, **options)
    assert set(level.tolist()) == {0, 1, 2, 3}

    def one_by_one(features):
        each = [ops.roi_align(features[s], rois, stride=s) for s in strides]
        return sum(
            jnp.where((level == i)[:, None, None, None], x, 0)
            for i, x in enumerate(each)
        )

    out, backward = jax.vjp(
        lambda f: ops.multilevel_roi_align(f, rois, **options), features
    )
    expected, expected_backward = jax.vjp(one_by_one, features)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    (grad,), (expected_grad,) = backward(cotangent), expected_backward(cotangent)
    for s in strides:
        assert np.abs(expected_grad[s]).max() > 0
        np.testing.assert_allclose(grad[s], expected_grad[s], atol=2e-5)


def test_multilevel_under_vmap(rng):
    features = {
        s: jnp.asarray(rng.normal(size=(2, 64 // s, 64 // s, 3)), jnp.float32)
        for s in (16, 8)  # any order of levels
    }
    rois = jnp.asarray(np.stack([some_rois(rng, 9, 64, 64) for _ in range(2)]))
    align = functools.partial(ops.multilevel_roi_align, canonical_size=40.0)
    out = jax.vmap(align)(features, rois)
    for i in range(2):
        one = align({s: f[i] for s, f in features.items()}, rois[i])
        np.testing.assert_allclose(out[i], one, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("count", [9, 0])
def test_multilevel_gradient_under_vmap(axes, count, rng):
    features, rois, g = {}, [], rng.normal(size=(2, count, 7, 7, 3)).astype(np.float32)
    for s in (8, 16):
        f = rng.normal(size=(2, 64 // s, 64 // s, 3)).astype(np.float32)
        features[s] = jnp.asarray(f[0] if axes[0] is None else f)
    rois = jnp.asarray(np.stack([some_rois(rng, 9, 64, 64)[:count] for _ in range(2)]))
    rois = rois[0] if axes[1] is None else rois

    def grad(features, rois, g):
        align = functools.partial(ops.multilevel_roi_align, canonical_size=40.0)
        return jax.vjp(lambda f: align(f, rois), features)[1](g)[0]

    found = jax.jit(jax.vmap(grad, (*axes, 0)))(features, rois, jnp.asarray(g))
    for i in range(2):
        one = {s: f if axes[0] is None else f[i] for s, f in features.items()}
        expected = grad(one, rois if axes[1] is None else rois[i], g[i])
        for s, each in expected.items():
            assert count == 0 or np.abs(each).max() > 0
            np.testing.assert_allclose(found[s][i], each, atol=2e-5)


def test_multilevel_keeps_what_is_not_finite_where_it_is():
    """Neither padded RoIs nor the last pixel of a level reach any other RoI."""
    features = {s: jnp.ones((64 // s, 64 // s, 2), jnp.bfloat16) for s in (8, 16)}
    features[16] = features[16].at[-1, -1].set(jnp.nan)
    rois = jnp.array([[8.0, 8, 24, 24], [jnp.nan] * 4, [0, 0, 0, 0], [40, 40, 64, 64]])
    out = ops.multilevel_roi_align(features, rois, canonical_size=40.0)
    assert out.dtype == jnp.bfloat16 and (np.float32(out[:1]) == 1).all()
    assert np.isfinite(np.float32(out[2])).all()


# RoIPool --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output_size", "stride"), [(7, 16), ((2, 3), 4.0), (6, 10), (14, 8)]
)
def test_roi_pool_equals_the_loop_with_gradient(rng, output_size, stride):
    # Few values and a ReLU: many ties, for the first pixel to win.
    features = np.maximum(rng.normal(size=(11, 17, 3)).round(1), 0).astype(np.float32)
    rois = some_rois(rng, 24, 11 * stride, 17 * stride)
    rois[1] = [-5 * stride, -5 * stride, -4 * stride, -4 * stride]  # nothing inside
    rois[2] = [0.5 * stride, 1.5 * stride, 2.5 * stride, 3.5 * stride]  # halves
    oh, ow = output_size if isinstance(output_size, tuple) else (output_size,) * 2
    expected, where = pool_loop(features, rois, stride, oh, ow)

    pool = jax.jit(
        lambda f: roi_pool.roi_pool(
            f, jnp.asarray(rois), stride=stride, output_size=output_size
        )
    )
    out, backward = jax.vjp(pool, jnp.asarray(features))
    np.testing.assert_array_equal(out, expected)
    assert not out[1].any()
    cotangent = rng.normal(size=out.shape).astype(np.float32)
    expected_grad = np.zeros(features.shape)
    for r, i, j, c in np.ndindex(out.shape):
        y, x = where[r, i, j, c]
        if y >= 0:
            expected_grad[y, x, c] += cotangent[r, i, j, c]
    np.testing.assert_allclose(
        backward(jnp.asarray(cotangent))[0], expected_grad, atol=2e-5
    )


@pytest.mark.parametrize("width", [57, 114, 62])
def test_roi_pool_borders_round_as_in_float32(rng, width):
    """Where 7 * (n / 7) is not n in float32, the last cell has one pixel more."""
    features = rng.normal(size=(3, 130, 4)).astype(np.float32)
    rois = np.array([[4, 0, 3 + width, 2], [9, 0, 8 + width, 2]], np.float32)
    pool = functools.partial(roi_pool.roi_pool, stride=1)
    expected, _ = pool_loop(features, rois, 1, 7, 7)
    arguments = jnp.asarray(features), jnp.asarray(rois)
    np.testing.assert_array_equal(pool(*arguments), expected)
    mapped = jax.vmap(pool)(*(jnp.stack([x, x]) for x in arguments))
    np.testing.assert_array_equal(mapped[1], expected)


def test_roi_pool_in_one_step_equals_roi_by_roi(rng):
    """What GPUs run and what CPUs run, on the same cells."""
    features = jnp.asarray(rng.normal(size=(9, 8, 3)), jnp.float32)
    rois = jnp.asarray(some_rois(rng, 8, 90, 80))
    pool = functools.partial(roi_pool.roi_pool, rois=rois, stride=10)
    flat, cells = features.reshape(72, 3), roi_pool._cells(rois / 10, 7, 7, 9, 8, 8)
    out, pixel = roi_pool._find_at_once(8, flat, *cells)
    np.testing.assert_array_equal(out.reshape(8, 7, 7, 3), pool(features))
    other, other_pixel = roi_pool._find_roi_by_roi(8, flat, *cells)
    np.testing.assert_array_equal(out, other)
    full = (cells[1] * cells[2] > 0)[..., None]
    np.testing.assert_array_equal(pixel * full, other_pixel * full)
    g = roi_pool._zero_if_empty(jnp.cos(out), *cells[1:])
    grad, other_grad = (
        add(8, jnp.zeros((72, 3)), g, pixel, *cells)
        for add in (roi_pool._add_at_once, roi_pool._add_roi_by_roi)
    )
    np.testing.assert_allclose(grad, other_grad, atol=1e-5)
    pull = jax.vjp(pool, features)[1]
    (expected,) = pull(jnp.cos(out).reshape(8, 7, 7, 3))
    np.testing.assert_allclose(grad.reshape(9, 8, 3), expected, atol=1e-5)


def test_roi_pool_derivatives_in_float64(rng):
    with jax.enable_x64(True):
        rois = jnp.asarray(some_rois(rng, 5, 24, 28))
        pool = functools.partial(roi_pool.roi_pool, stride=4, output_size=2)
        loss = lambda f: jnp.sin(pool(f, rois)).sum()  # noqa: E731
        check_derivatives(loss, rng.normal(size=(6, 7, 2)), rng)
