"""The simple feature pyramid against NumPy loops, level by level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from frcnn_jax import models
from frcnn_jax.models import simple_pyramid


def up(x, p):
    """A cell becomes 2x2, each by its own matrix."""
    (b, h, w, _), o = x.shape, p["kernel"].shape[-1]
    y = np.zeros((b, 2 * h, 2 * w, o))
    for dy in range(2):
        for dx in range(2):
            y[:, dy::2, dx::2] = x @ p["kernel"][dy, dx] + p["bias"]
    return y


def norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def conv(x, kernel):
    k, (b, h, w, _) = len(kernel), x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    y = np.zeros((b, h, w, kernel.shape[-1]))
    for dy in range(k):
        for dx in range(k):
            y += padded[:, dy : dy + h, dx : dx + w] @ kernel[dy, dx]
    return y


def level(x, p, scale, stride):
    if scale == 4:
        x = norm(up(x, p[f"up{stride}_1"]), p[f"up{stride}_norm"])
        x = up(0.5 * x * (1 + erf(x / np.sqrt(2))), p[f"up{stride}_2"])
    elif scale == 2:
        x = up(x, p[f"up{stride}_1"])
    elif scale == 0.5:
        b, h, w, c = x.shape
        full = np.full((b, h + h % 2, w + w % 2, c), -np.inf)
        full[:, :h, :w] = x
        x = full.reshape((b, (h + 1) // 2, 2, (w + 1) // 2, 2, c)).max((2, 4))
    for name in (f"lateral{stride}", f"output{stride}"):
        x = norm(conv(x, p[name]["kernel"]), p[f"{name}_norm"])
    return x


def test_levels_are_those_of_loops(rng):
    x = rng.normal(size=(1, 5, 7, 8)).astype(np.float32)
    neck = simple_pyramid.Neck(channels=6)
    start = jax.jit(neck.init)(jax.random.key(0), {16: jnp.asarray(x)})
    variables = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape), start)
    variables = jax.tree.map(jnp.float32, variables)
    maps = jax.jit(neck.apply)(variables, {16: jnp.asarray(x)})
    p = jax.tree.map(np.float64, variables["params"])
    assert list(maps) == [4, 8, 16, 32, 64]
    for scale, stride in ((4, 4), (2, 8), (1, 16), (0.5, 32)):
        expected = level(np.float64(x), p, scale, stride)
        np.testing.assert_allclose(maps[stride], expected, atol=2e-4)
    np.testing.assert_array_equal(maps[64], maps[32][:, ::2, ::2])


def test_it_is_found_by_its_name_and_a_map_of_stride_14_has_its_scales():
    build = models.build.build_neck
    neck = build("simple_pyramid", channels=6, scales=(2, 1, 0.5), pool_levels=0)
    x = jax.ShapeDtypeStruct((1, 5, 7, 8), jnp.float32)
    maps, _ = jax.eval_shape(neck.init_with_output, jax.random.key(0), {14: x})
    assert {s: m.shape for s, m in maps.items()} == {
        7: (1, 10, 14, 6),
        14: (1, 5, 7, 6),
        28: (1, 3, 4, 6),
    }
    wrong = build("simple_pyramid", channels=6)
    with pytest.raises(ValueError, match=r"3\.5 is no whole number of pixels"):
        jax.eval_shape(wrong.init, jax.random.key(0), {14: x})
    with pytest.raises(ValueError, match="reads one map, the backbone gives"):
        jax.eval_shape(wrong.init, jax.random.key(0), {8: x, 16: x})
    with pytest.raises(ValueError, match=r"fpn.scales=\(3,\): expected some of"):
        build("simple_pyramid", scales=(3,))


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_what_lies_beyond_the_extent_changes_nothing_inside(norm, rng):
    neck = simple_pyramid.Neck(channels=4, norm=norm)
    small = jnp.float32(rng.normal(size=(1, 3, 5, 16)))
    large = jnp.full((1, 6, 8, 16), jnp.nan).at[:, :3, :5].set(small)
    variables = neck.init(jax.random.key(0), {16: small})
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # a zero hides a mask
    alone = neck.apply(variables, {16: small})
    found = neck.apply(variables, {16: large}, jnp.array([[41, 80]]))
    for stride, expected in alone.items():
        h, w = expected.shape[1:3]
        np.testing.assert_allclose(found[stride][:, :h, :w], expected, atol=1e-5)
