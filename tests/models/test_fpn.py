import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import fpn


def test_upsample_repeats_and_cuts():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    out = fpn.upsample(x, (3, 4))[0, :, :, 0]
    np.testing.assert_array_equal(out, [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]])


@pytest.mark.parametrize("size", [(2, 4), (5, 4), (4, 2), (4, 5)])
def test_upsample_refuses_a_map_that_is_not_half(size):
    with pytest.raises(ValueError, match="half the cells"):
        fpn.upsample(jnp.zeros((1, 2, 2, 1)), size)


def test_pyramid_adds_coarser_maps_from_the_top():
    """With identity kernels p_s is the sum of all maps from s on, seen from s."""
    rng = np.random.default_rng(0)
    features = {
        s: jnp.float32(rng.normal(size=(1, h, w, 2)))
        for s, h, w in ((4, 7, 10), (8, 4, 5), (16, 2, 3))
    }
    net = fpn.FPN(channels=2)
    params = jax.jit(net.init)(jax.random.key(0), features)["params"]
    assert set(params) == {
        *("lateral4", "output4", "lateral8", "output8", "lateral16", "output16")
    }
    for name in params:
        kernel = np.zeros(params[name]["kernel"].shape, np.float32)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = np.eye(2)
        params[name] = {"kernel": kernel, "bias": np.zeros(2, np.float32)}
    out = jax.jit(net.apply)({"params": params}, features)

    expected = {16: features[16]}
    for s, h, w in ((8, 4, 5), (4, 7, 10)):
        y, x = np.mgrid[:h, :w] // 2
        expected[s] = features[s] + expected[2 * s][:, y, x]
    expected[32] = np.asarray(features[16])[:, :1, [0, 2]]
    assert list(out) == [4, 8, 16, 32]
    for s in out:
        np.testing.assert_allclose(out[s], expected[s], rtol=1e-6, atol=1e-6)


def test_output_convolution_comes_after_the_merge():
    """A kernel that sums its window doubles as a check of which map is convolved."""
    features = {8: jnp.ones((1, 4, 4, 1)), 16: jnp.ones((1, 2, 2, 1))}
    net = fpn.FPN(channels=1, pool_levels=0)
    params = net.init(jax.random.key(0), features)["params"]
    params = jax.tree.map(jnp.ones_like, params)
    out = net.apply({"params": params}, features)
    # Laterals 1 + 1; merged at stride 8: 2 + 2; a corner sees 4 cells; bias 1.
    assert list(out) == [8, 16]
    assert out[16][0, 0, 0, 0] == 4 * 2 + 1
    assert out[8][0, 0, 0, 0] == 4 * 4 + 1
    assert out[8][0, 1, 1, 0] == 9 * 4 + 1
