import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import vit

NARROW = dict(depth=2, width=32, heads=2, window=3, global_blocks=(1,), positions=4)
NARROW |= dict(relative=5)
TOKEN = dict(depth=2, width=32, heads=2, **(vit.DINOV2 | dict(positions=4)))
SHAPE = jax.ShapeDtypeStruct((2, 72, 100, 3), np.float32)  # 5 x 7 cells of 16 pixels


@pytest.fixture(scope="module")
def image():
    drawn = np.random.default_rng(0).normal(size=SHAPE.shape)
    return jnp.asarray(drawn, jnp.float32)


def variables_of(fields, image):
    """Initial values and noise, so that tables and branches matter."""
    start = jax.jit(vit.Backbone(**fields).init)(jax.random.key(0), image)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), start
    )


@pytest.mark.parametrize(
    "fields, parameters",
    [
        (dict(positions=64), 89_670_912 - 787_456),  # Segment Anything, without neck
        (dict(width=384, heads=6, **vit.DINOV2), 22_056_192),
        (vit.DINOV2, 86_579_712),
    ],
)
def test_parameters_are_as_many_as_in_timm(fields, parameters):
    model = vit.Backbone(**fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SHAPE)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


def test_attention_is_that_of_a_loop_over_windows(rng):
    """A block of windows that the map's border cuts, against NumPy in float64."""
    (h, w), side, a, d = (4, 5), 3, 2, 4
    c = a * d
    x = rng.normal(size=(1, h * w, c)).astype(np.float32)
    block = vit.Block(a, side, side, 0.0, 1e-6, jnp.float32)
    start = block.init(jax.random.key(0), jnp.asarray(x), (h, w), None, None)
    variables = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), start)
    variables = jax.tree.map(jnp.float32, variables)
    run = jax.jit(block.apply, static_argnums=2)
    found = run(variables, jnp.asarray(x), (h, w), None, None)
    p = jax.tree.map(np.float64, variables["params"])

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    y, attention = np.zeros((6, 6, c)), p["attention"]
    y[:h, :w] = norm(np.float64(x), p["norm1"]).reshape((h, w, c))
    mixed = np.zeros((6, 6, c))
    for y0 in (0, 3):
        for x0 in (0, 3):
            at = [(y0 + i, x0 + j) for i in range(3) for j in range(3)]
            qkv = dense(np.stack([y[i] for i in at]), attention["qkv"])
            q, k, v = np.moveaxis(qkv.reshape((9, 3, a, d)), 1, 0)
            for t, (ty, tx) in enumerate(at):
                out = []
                for head in range(a):
                    row = attention["row_positions"]
                    column = attention["column_positions"]
                    logits = np.array(
                        [
                            q[t, head] @ k[s, head] / np.sqrt(d)
                            + q[t, head] @ row[ty - sy + side - 1]
                            + q[t, head] @ column[tx - sx + side - 1]
                            for s, (sy, sx) in enumerate(at)
                        ]
                    )
                    weights = np.exp(logits - logits.max())
                    out.append(weights / weights.sum() @ v[:, head])
                mixed[ty, tx] = np.concatenate(out)
    x = x[0] + dense(mixed[:h, :w].reshape((-1, c)), attention["project"])
    hidden = dense(norm(x, p["norm2"]), p["mlp_expand"])
    hidden = np.array(jax.nn.gelu(hidden, approximate=False), np.float64)
    np.testing.assert_allclose(found[0], x + dense(hidden, p["mlp_project"]), atol=2e-4)


def test_bfloat16_is_close_and_images_do_not_mix(image):
    for fields, stride in ((NARROW, 16), (TOKEN, 14)):
        variables = variables_of(fields, image)
        exact = jax.jit(vit.Backbone(**fields).apply)
        low = jax.jit(vit.Backbone(**fields, dtype=jnp.bfloat16).apply)
        x, rough = exact(variables, image)[stride], low(variables, image)[stride]
        other = exact(variables, jnp.stack([image[0], image[1, ::-1]]))[stride]
        assert rough.dtype == jnp.bfloat16
        scale = np.sqrt((x**2).mean())
        assert np.sqrt(((np.float32(rough) - x) ** 2).mean()) < 0.05 * scale
        np.testing.assert_allclose(other[0], x[0], atol=1e-5 * scale)
        assert np.abs(other[1] - x[1]).max() > 1e-3 * scale


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients(image):
    variables = variables_of(NARROW, image)

    def loss(variables, remat):
        x = vit.Backbone(**NARROW, remat=remat).apply(variables, image)[16]
        return (x.sum((0, 1, 2)) * (1 + jnp.arange(x.shape[-1]))).sum()

    plain, again = (
        jax.jit(jax.grad(lambda v, r=r: loss(v, r)))(variables) for r in (False, True)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max() + 1e-6)
        assert np.isfinite(a).all() and np.abs(a).max() > 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(depth=0), "model.backbone.depth="),
        (dict(window=-1), "model.backbone.window="),
        (dict(width=100), "vit width=100: expected a multiple of heads=12"),
        (dict(class_token=True), "a class token has no place in a window"),
    ],
)
def test_a_value_out_of_range_is_named(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        vit.Backbone(**wrong)
