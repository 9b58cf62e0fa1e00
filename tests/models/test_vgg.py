import functools

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.models import vgg, zf


def shapes(module, *args):
    """Variables and output of `module` by shape alone."""
    return jax.eval_shape(
        lambda *args: module.init_with_output(jax.random.key(0), *args)[::-1], *args
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(h, w, b=1):
    return jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)


def test_vgg16_has_the_parameters_of_the_known_network():
    """138,357,544 in all, with fc8 for 1000 classes."""
    variables, features = shapes(vgg.Backbone(), images(64, 64))
    assert list(variables["params"]) == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
        *(f"conv{i}_{j}" for i in (3, 4, 5) for j in (1, 2, 3)),
    ]
    assert features[16].shape == (1, 4, 4, 512)
    rois = jax.ShapeDtypeStruct((2, 3, 7, 7, 512), jnp.float32)
    head, (logits, deltas) = shapes(vgg.BoxHead(num_classes=20), rois)
    assert logits.shape == (2, 3, 21) and deltas.shape == (2, 3, 20, 4)
    fc = count([head["params"][name] for name in ("fc6", "fc7")])
    fc8 = 4096 * 1000 + 1000
    assert count(variables) + fc + fc8 == 138_357_544


def test_map_is_image_size_over_16_rounded_up():
    for backbone in (vgg.Backbone(), zf.Backbone()):
        _, features = shapes(backbone, images(75, 130, 2))
        assert {s: f.shape[:3] for s, f in features.items()} == {16: (2, 5, 9)}


def test_odd_rows_and_columns_are_not_lost():
    """The last pixel of a 17 x 17 image reaches the last cell of the map."""
    model, x = vgg.Backbone(), jnp.zeros((1, 17, 17, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    run = jax.jit(model.apply)
    before, after = run(variables, x)[16], run(variables, x.at[0, 16, 16].set(9.0))[16]
    assert after.shape == (1, 2, 2, 512)
    assert np.abs(after - before)[0, 1, 1].max() > 0


HEAD = vgg.BoxHead(num_classes=3, widths=(32, 32))


@functools.cache
def head_variables():
    return jax.jit(HEAD.init)(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)))


def test_fc6_flattens_y_x_channel():
    variables = head_variables()
    x = jax.random.normal(jax.random.key(1), (1, 1, 2, 2, 4))
    logits, _ = jax.jit(HEAD.apply)(variables, x)
    h = np.asarray(x).reshape(-1)
    for name in ("fc6", "fc7"):
        layer = variables["params"][name]
        h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
    last = variables["params"]["class_logits"]
    np.testing.assert_allclose(logits[0, 0], h @ last["kernel"] + last["bias"], 1e-4)


def test_dropout_is_drawn_by_the_image_not_by_the_batch():
    variables = head_variables()
    x = jax.random.normal(jax.random.key(1), (3, 5, 2, 2, 4))
    keys = jax.random.split(jax.random.key(2), 3)
    apply = jax.jit(HEAD.apply)
    whole, _ = apply(variables, x, keys)
    alone = [apply(variables, x[i : i + 1], keys[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(whole, np.concatenate(alone), rtol=1e-5, atol=1e-7)
    other, _ = HEAD.apply(variables, x, keys[::-1])
    assert np.abs(whole - other).max() > 0
    still, _ = HEAD.apply(variables, x)
    again, _ = HEAD.apply(variables, x, None)
    np.testing.assert_array_equal(still, again)
    assert np.abs(whole - still).max() > 0


def test_dropout_off_equals_rate_zero():
    variables = head_variables()
    x = jax.random.normal(jax.random.key(1), (2, 3, 2, 2, 4))
    keys = jax.random.split(jax.random.key(2), 2)
    none = HEAD.clone(dropout=0.0).apply(variables, x, keys)
    jax.tree.map(np.testing.assert_array_equal, none, HEAD.apply(variables, x))
