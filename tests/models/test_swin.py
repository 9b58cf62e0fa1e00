import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import swin

NARROW = dict(depths=(2, 1, 1, 1), width=32)
LATE = re.compile("stage[34]|norm(16|32)")  # not of strides 4 and 8
SHAPE = jax.ShapeDtypeStruct((2, 40, 52, 3), np.float32)  # 10 x 13 cells, then 5 x 7


@pytest.fixture(scope="module")
def image():
    drawn = np.random.default_rng(0).normal(size=SHAPE.shape)
    return jnp.asarray(drawn, jnp.float32)


@pytest.fixture(scope="module")
def variables(image):
    """Initial values with larger products, so that the branches matter."""
    drawn = jax.jit(swin.Backbone(**NARROW).init)(jax.random.key(0), image)
    return jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, drawn)


@pytest.mark.parametrize(
    "depths, width, parameters",
    [
        ((2, 2, 6, 2), 96, 28_288_354),
        pytest.param((2, 2, 18, 2), 96, 49_606_258, marks=pytest.mark.slow),
        pytest.param((2, 2, 18, 2), 128, 87_768_224, marks=pytest.mark.slow),
    ],
)
def test_parameters_are_as_many_as_published(depths, width, parameters):
    """By torchvision's tables, with the classifier and its norm."""
    model = swin.Backbone(depths=depths, width=width, out_norm=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SHAPE)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count + 2 * 8 * width + 8 * width * 1000 + 1000 == parameters


def test_every_output_has_its_stride_and_channels_and_nothing_is_built_beyond(image):
    model = swin.Backbone(**NARROW, out_strides=(4, 16))
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {s: x.shape for s, x in out.items()} == {
        4: (2, 10, 13, 32),
        16: (2, 3, 4, 128),
    }
    assert "stage3" in variables["params"] and "stage4" not in variables["params"]


def test_windows_are_cut_row_by_row_and_joined_again(rng):
    x = rng.normal(size=(2, 6, 9, 4))
    cut = swin.windows(jnp.asarray(x), 3)
    assert cut.shape == (2 * 2 * 3, 3, 3, 4)
    np.testing.assert_allclose(cut[7], x[1, :3, 3:6], rtol=1e-6)
    np.testing.assert_allclose(swin.joined(cut, (6, 9)), x, rtol=1e-6)


def test_channels_of_four_cells_stand_in_the_order_of_the_authors(rng):
    x = rng.normal(size=(1, 3, 4, 2)).astype(np.float32)
    out = np.asarray(swin.merged(jnp.asarray(x)))
    assert out.shape == (1, 2, 2, 8)
    four = [x[0, 0, 2], x[0, 1, 2], x[0, 0, 3], x[0, 1, 3]]
    np.testing.assert_array_equal(out[0, 0, 1], np.concatenate(four))
    np.testing.assert_array_equal(out[0, 1, 0, 2:4], 0)  # below the map
    np.testing.assert_array_equal(out[0, 1, 0, 4:6], x[0, 2, 1])


def test_the_row_of_the_table_is_that_of_the_offset():
    window = 3
    found = swin.offsets(window)
    for t in range(9):
        for s in range(9):
            dy, dx = t // 3 - s // 3, t % 3 - s % 3
            assert found[t, s] == (dy + 2) * 5 + dx + 2


@pytest.mark.parametrize("shift", [(1, 1), (1, 0), (0, 1)])
def test_cells_see_those_of_their_window_that_were_near_before_the_shift(shift):
    """Each pair of cells by hand: never across a border that the roll has moved."""
    size, window = (6, 9), 3
    (found,) = np.asarray(swin.together(size, shift, window))
    assert found.shape == (6, 9, 9)
    at = np.stack(np.indices(size), -1)  # (y, x) of each cell
    rolled = np.roll(at, (-shift[0], -shift[1]), (0, 1))
    for y in range(2):
        for x in range(3):
            cells = rolled[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].reshape(-1, 2)
            for t, a in enumerate(cells):
                for s, b in enumerate(cells):
                    near = np.all(np.abs(a - b) < window)
                    assert found[y * 3 + x, t, s] == near


def test_attention_is_that_of_a_loop_over_windows(rng):
    """Shifted, on a map that needs padding, against NumPy in float64."""
    h, w, c, window, shift = 5, 7, 64, 3, 1
    x = rng.normal(size=(1, h, w, c)).astype(np.float32)
    attention = swin.Attention(window, True, jnp.float32)
    variables = jax.jit(attention.init)(jax.random.key(0), x)
    variables = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), variables)
    variables = jax.tree.map(jnp.float32, variables)
    out = jax.jit(attention.apply)(variables, x)
    p = jax.tree.map(np.float64, variables["params"])
    full = np.zeros((6, 9, c))
    full[:h, :w] = x[0]
    at = np.stack(np.indices((6, 9)), -1)
    expected = np.zeros((6, 9, c))
    groups = {}
    for y in range(6):
        for z in range(9):
            # A window begins at 1, 4, 7, ... and the rest before it stands alone.
            groups.setdefault(((y + 2) // 3, (z + 2) // 3), []).append((y, z))
    for cells in groups.values():
        tokens = np.stack([full[at] for at in cells])
        qkv = tokens @ p["qkv"]["kernel"] + p["qkv"]["bias"]
        q, k, v = np.moveaxis(qkv.reshape(-1, 3, 2, 32), 1, 0)
        mixed = np.zeros((len(cells), 2, 32))
        for a in range(2):
            for t, (ty, tx) in enumerate(cells):
                logits = [
                    q[t, a] @ k[s, a] / np.sqrt(32)
                    + p["positions"]["bias"][(ty - sy + 2) * 5 + tx - sx + 2, a]
                    for s, (sy, sx) in enumerate(cells)
                ]
                weights = np.exp(logits - np.max(logits))
                mixed[t, a] = weights / weights.sum() @ v[:, a]
        y = mixed.reshape(-1, c) @ p["project"]["kernel"] + p["project"]["bias"]
        for at, value in zip(cells, y, strict=True):
            expected[at] = value
    assert shift == window // 2
    np.testing.assert_allclose(out[0], expected[:h, :w], atol=2e-4)


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients(image, variables):
    def loss(variables, remat):
        model = swin.Backbone(**NARROW, out_strides=(4, 8), remat=remat)
        maps = model.apply(variables, image)
        return sum(
            (x.sum((0, 1, 2)) * (1 + jnp.arange(x.shape[-1]))).sum()
            for x in maps.values()
        )

    plain, again = (
        jax.jit(jax.grad(lambda v, r=r: loss(v, r)))(variables) for r in (False, True)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max() + 1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(plain))
    used = {k: v for k, v in plain["params"].items() if not LATE.search(k)}
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(used))


def test_bfloat16_is_close_and_images_do_not_mix(image, variables):
    exact = jax.jit(swin.Backbone(**NARROW).apply)
    low = jax.jit(swin.Backbone(**NARROW, dtype=jnp.bfloat16).apply)
    maps, rough = exact(variables, image), low(variables, image)
    other = exact(variables, jnp.stack([image[0], image[1, ::-1]]))
    for s, x in maps.items():
        assert rough[s].dtype == jnp.bfloat16
        difference = np.float32(rough[s]) - x
        assert np.sqrt((difference**2).mean()) < 0.05
        np.testing.assert_allclose(other[s][0], x[0], atol=1e-5)
        assert np.abs(other[s][1] - x[1]).max() > 1e-3


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(depths=(2, 2, 6)), "model.backbone.depths="),
        (dict(window=0), "model.backbone.window="),
        (dict(width=48), "swin width=48: expected a multiple of 32"),
        (dict(out_strides=(64,)), r"swin out_strides=\(64,\).*4, 8, 16, 32"),
    ],
)
def test_a_value_out_of_range_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        swin.Backbone(**wrong)
