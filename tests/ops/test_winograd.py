"""Winograd's convolution against the sum it stands for, exactly and in float64."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import layers
from frcnn_jax.ops import convolution, winograd
from frcnn_jax.ops.direct_conv import direct_conv
from tests.models.test_layers import slow_conv


def exactly(array):
    return np.array([[Fraction(float(v)) for v in row] for row in array])


def test_the_matrices_are_an_identity_of_polynomials():
    """y = A^T [(G k) * (B^T d)] gives each of the 18 products its one place, exactly.

    G's thirds are no binary fractions; they are recovered from its scaled rows.
    """
    a, g, b = winograd.matrices()
    a, b = exactly(a), exactly(b)
    g = np.array(
        [[Fraction(float(v)).limit_denominator(10**6) for v in row] for row in g]
    )
    for i in range(6):
        for k in range(3):
            d, kernel = np.arange(6) == i, np.arange(3) == k
            out = a @ ((g @ kernel) * (b @ d))
            assert list(out) == [int(y + k == i) for y in range(4)]


SHAPES = [  # n, h, w, input channels, output channels
    (1, 4, 4, 3, 5),  # one tile
    (2, 1, 3, 3, 5),  # a part of one
    (1, 13, 22, 4, 3),  # odd sides
    (2, 101, 90, 3, 2),  # two bands of a map
    (1, 105, 90, 8, 8),  # the last band has more than a row of tiles of the first
    (1, 10, 2045, 8, 8),  # three bands, one of them with neighbours on both sides
    (129, 7, 7, 3, 4),  # two groups of 65 small maps, one map in both
    (5, 64, 64, 8, 8),  # three groups of 2
    (1, 9, 10, 128, 96),  # wide
]
TRANSFORMS = dict(
    eager=lambda f, *args: f(*args),
    jit=lambda f, *args: jax.jit(f)(*args),
    vmap=lambda f, *args: [
        a[0] for a in jax.jit(jax.vmap(f))(*(a[None] for a in args))
    ],
)
# One shape each way; the others, and the bound on their rounding, need the compiler
# that users have (tests/conftest.py).
FAST = [(SHAPES[2], "jit"), (SHAPES[3], "vmap"), (SHAPES[1], "eager")]
CASES = FAST + [
    pytest.param(shape, transform, marks=pytest.mark.slow)
    for shape in SHAPES
    for transform in ("jit", "vmap")
    if (shape, transform) not in FAST
]


def conv3x3(x, kernel, bias=None):
    """Winograd's on a CPU, whatever the size of the map."""
    return convolution.convolve(x, kernel, bias, kind="winograd")


def with_gradients(function, g, *args):
    out, pull = jax.vjp(function, *args)
    return out, *pull(g)


@pytest.mark.parametrize(("shape", "transform"), CASES)
def test_winograd_is_the_windowed_sum_and_so_are_its_gradients(shape, transform, rng):
    n, h, w, i, o = shape
    shapes = (n, h, w, o), (n, h, w, i), (3, 3, i, o), (o,)
    g, x, kernel, bias = (jnp.float32(rng.normal(size=s)) for s in shapes)
    ours = partial(with_gradients, conv3x3)
    found = TRANSFORMS[transform](ours, g, x, kernel, bias)
    without_bias = slow_conv(x, kernel, 1, 1)
    d_x = slow_conv(g, np.asarray(kernel)[::-1, ::-1].swapaxes(2, 3), 1, 1)
    # of the kernel: a convolution of x with g, images as channels
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [padded[:, u : u + h, v : v + w] for u in range(3) for v in range(3)]
    d_kernel = [np.einsum("nhwi,nhwo->io", place, np.float64(g)) for place in places]
    d_kernel = np.reshape(d_kernel, kernel.shape)
    d_bias = np.float64(g).sum((0, 1, 2))

    def compare(found, expected):
        error = found - expected
        np.testing.assert_allclose(error, 0, atol=1e-5 * np.abs(expected).max())
        assert np.linalg.norm(error) < 1.8e-6 * np.linalg.norm(expected)

    out = without_bias + np.asarray(bias)
    for a, b in zip(found, (out, d_x, d_kernel, d_bias), strict=True):
        compare(a, b)
    if transform == "jit":
        compare(jax.jit(conv3x3)(x, kernel), without_bias)


def test_one_large_value_stays_near_where_it_is():
    """Beyond the tiles it lies in nothing changes; there by rounding of its size."""
    for y, x in ((5, 6), (8, 8)):  # in one tile, in four
        image = jnp.ones((1, 16, 16, 2)).at[0, y, x, 1].set(1e6)
        kernel = jnp.zeros((3, 3, 2, 1)).at[1, 1].set(1.0)  # the sum over channels
        out = np.asarray(conv3x3(image, kernel))[0, :, :, 0]
        expected = np.full((16, 16), 2.0)
        expected[y, x] = 1e6 + 1
        error = np.abs(out - expected)
        assert error.max() < 1e-5 * 1e6
        error[4:12, 4:12] = 0
        assert error.max() < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_lost(value):
    x = jnp.zeros((1, 16, 16, 2)).at[0, 8, 8, 1].set(value)
    finite = np.isfinite(conv3x3(x, jnp.ones((3, 3, 2, 1))))[0, :, :, 0]
    assert not finite[7:10, 7:10].any()
    assert (~finite).sum() <= 25
    # 103 rows: the last band begins in row 51, three rows into a tile
    x = jnp.zeros((1, 103, 90, 2)).at[0, 51, 45, 1].set(value)
    finite = np.isfinite(conv3x3(x, jnp.ones((3, 3, 2, 1))))[0, :, :, 0]
    assert not finite[50:53, 44:47].any()
    assert (~finite).sum() <= 35


@pytest.mark.slow  # memory is planned by the compiler that users have
def test_what_it_needs_besides_does_not_grow_with_the_images():
    def planned(n):
        x = jax.ShapeDtypeStruct((n, 61, 62, 64), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
        compiled = jax.jit(partial(with_gradients, conv3x3))
        memory = compiled.lower(x, x, kernel).compile().memory_analysis()
        return memory.temp_size_in_bytes

    one_map = 4 * 61 * 62 * 64
    assert planned(8) - planned(4) < 0.1 * one_map


def test_an_eager_call_compiles_once(rng, caplog):
    x = jnp.float32(rng.normal(size=(1, 9, 9, 3)))
    kernel = jnp.float32(rng.normal(size=(3, 3, 3, 3)))
    counts = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles():
            jax.block_until_ready(with_gradients(conv3x3, x, x, kernel))
        counts.append(sum("Compiling" in r.getMessage() for r in caplog.records))
    assert counts[0] > 0 == counts[1]


def test_under_pmap(rng):
    shapes = (1, 1, 33, 17, 3), (1, 1, 33, 17, 4), (3, 3, 3, 4)
    x, g, kernel = (jnp.float32(rng.normal(size=s)) for s in shapes)

    def step(x, g):
        out, d_x, d_kernel = with_gradients(conv3x3, g, x, kernel)
        return out, d_x, jax.lax.psum(d_kernel, "batch")

    on_device = jax.pmap(step, axis_name="batch")(x, g)
    direct = partial(direct_conv, padding=1)
    plain = with_gradients(direct, g[0], x[0], kernel)
    for a, b in zip(on_device, plain, strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-5 * np.abs(b).max())


def test_exported_for_other_devices_it_is_a_convolution():
    x = jax.ShapeDtypeStruct((1, 64, 64, 64), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
    conv = jax.jit(lambda x, k: layers.conv(x, k, padding=1))

    def text(*platforms):
        return jax.export.export(conv, platforms=platforms)(x, kernel).mlir_module()

    cpu, cuda, both = text("cpu"), text("cuda"), text("cpu", "cuda", "tpu")
    assert "stablehlo.while" in cpu and "stablehlo.convolution" not in cpu
    assert "stablehlo.convolution" in cuda and "stablehlo.while" not in cuda
    assert "stablehlo.while" in both and "stablehlo.convolution" in both


def test_blocks_cover_the_map_without_much_beyond_it():
    for h, w in ((200, 336), (100, 168), (50, 84), (123, 160), (1, 4096), (4096, 4)):
        _, images, rows, columns, groups, bands = winograd._cut((1, h, w))
        assert images == groups == 1
        assert rows * columns <= max(winograd.TILES, columns)
        assert 4 * columns - w < 4 and h <= 4 * rows * bands < 1.1 * h + 4
    assert winograd._cut((2, 101, 90)).bands == 2
    for n in (7, 129, 130, 300, 512, 1000):  # RoIs
        _, images, rows, columns, groups, bands = winograd._cut((n, 7, 7))
        assert (rows, columns, bands) == (2, 2, 1)
        assert n <= images * groups < n + groups


def test_layers_choose_it_for_large_maps_of_float32():
    def used(*shape, dtype=jnp.float32, channels=64, platform="cpu"):
        x = jax.ShapeDtypeStruct((*shape, channels), dtype)
        k = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
        conv = jax.jit(lambda x, k: layers.conv(x, k, padding=1))
        exported = jax.export.export(conv, platforms=(platform,))(x, k)
        return "while" in exported.mlir_module()

    assert not used(*jax.export.symbolic_shape("b, 64, 64"))  # the batch is not known
    assert used(1, 64, 64) and used(4, 32, 29) and used(64, 7, 7)
    assert (
        not used(1, 64, 60) and not used(64, 5, 5) and not used(1, 64, 64, channels=63)
    )
    assert not used(1, 64, 64, dtype=jnp.bfloat16)
    assert not used(1, 64, 64, platform="cuda")
