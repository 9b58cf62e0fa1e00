import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models.build import build_backbone
from frcnn_jax.training.optimizer import (
    decay_mask,
    make_optimizer,
    rate_schedule,
    trainable_mask,
)

PARAMS = {
    "backbone": {
        "layer1": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "layer10": {"kernel": jnp.ones(2), "scale": jnp.ones(2)},
    },
    "head": {"kernel": jnp.ones(2)},
}


def test_rate_warms_up_linearly_then_steps_down():
    rate = rate_schedule(
        100, base=0.2, boundaries=(0.5, 80.0), warmup_steps=10, warmup_factor=0.1
    )
    # 0.2 * (0.1 + 0.9 * 5 / 10) = 0.11 half-way up
    at = {0: 0.02, 5: 0.11, 10: 0.2, 49: 0.2, 50: 0.02, 79: 0.02, 80: 0.002, 99: 0.002}
    for step, expected in at.items():
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, err_msg=str(step))


def test_rate_falls_as_a_cosine_to_zero():
    rate = rate_schedule(110, base=1.0, schedule="cosine", warmup_steps=10)
    np.testing.assert_allclose(
        [rate(10), rate(60), rate(110)], [1.0, 0.5, 0.0], atol=1e-6
    )


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="schedule='liner'.*'cosine'"):
        rate_schedule(10, base=1.0, schedule="liner")
    with pytest.raises(ValueError, match="optimizer.name='adam'.*'sgd' or 'adamw'"):
        make_optimizer(10, name="adam", learning_rate=0.1)
    with pytest.raises(TypeError, match="momentun"):
        make_optimizer(10, learning_rate=0.1, momentun=0.9)


def test_sgd_is_momentum_with_l2_decay_as_in_torch():
    """v <- m v + g + wd p; p <- p - lr v, by hand over two steps."""
    optimizer, _ = make_optimizer(
        10, learning_rate=0.1, momentum=0.9, weight_decay=0.5, schedule="constant"
    )
    params = {"kernel": jnp.float32([1.0]), "bias": jnp.float32([1.0])}
    grads = {"kernel": jnp.float32([2.0]), "bias": jnp.float32([2.0])}
    state = optimizer.init(params)
    for expected_kernel, expected_bias in [(0.75, 0.8), (0.2875, 0.42)]:
        # kernel: v = 2 + 0.5 = 2.5, p = 0.75; v = 2.25 + 2.375 = 4.625, p = 0.2875
        # bias:   v = 2, p = 0.8; v = 1.8 + 2 = 3.8, p = 0.42
        updates, state = optimizer.update(grads, state, params)
        params = {k: params[k] + updates[k] for k in params}
        np.testing.assert_allclose(params["kernel"], [expected_kernel], rtol=1e-5)
        np.testing.assert_allclose(params["bias"], [expected_bias], rtol=1e-5)


def test_clip_bounds_the_global_norm():
    optimizer, _ = make_optimizer(
        1,
        learning_rate=1.0,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=1.0,
        schedule="constant",
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.float32([3.0]), "b": jnp.float32([4.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-0.8], rtol=1e-6)


def test_frozen_prefix_ends_at_a_slash():
    mask = trainable_mask(PARAMS, ("backbone/layer1",))
    assert mask["backbone"]["layer1"] == {"kernel": False, "bias": False}
    assert mask["backbone"]["layer10"] == {"kernel": True, "scale": True}
    assert mask["head"] == {"kernel": True}


def test_frozen_prefix_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match="frozen='backbone/layre1'.*backbone/layer1"):
        trainable_mask(PARAMS, ("backbone/layre1",))


def test_decay_skips_norms_and_biases():
    assert decay_mask(PARAMS) == {
        "backbone": {
            "layer1": {"kernel": True, "bias": False},
            "layer10": {"kernel": True, "scale": False},
        },
        "head": {"kernel": True},
    }


@pytest.mark.parametrize(
    "name, fields",
    [
        ("convnext", dict(depths=(1, 1, 1, 1), width=8)),
        ("swin", dict(depths=(1, 1, 1, 1), width=32)),
        ("vit", dict(depth=1, width=8, heads=2)),
        (
            "vit",
            dict(depth=1, width=8, heads=2, window=0, relative=0)
            | dict(class_token=True, layer_scale=0.1),
        ),
    ],
)
def test_of_the_backbones_of_today_kernels_alone_decay(name, fields):
    model = build_backbone(name, **fields)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    for decays, shape in zip(
        jax.tree.leaves(decay_mask(params)),
        jax.tree_util.tree_leaves_with_path(params),
        strict=True,
    ):
        assert decays == (shape[0][-1].key == "kernel"), shape


def test_biases_learn_at_their_own_rate():
    params = {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer, _ = make_optimizer(
        10, learning_rate=0.1, weight_decay=0.0, schedule="constant", bias_rate=2.0
    )
    state = optimizer.init(params)
    for _ in range(2):  # momentum 0.9: 0.1, then 0.1 * 1.9
        updates, state = optimizer.update(grads, state, params)
    np.testing.assert_allclose(updates["conv"]["kernel"], [-0.19] * 2, rtol=1e-5)
    np.testing.assert_allclose(updates["conv"]["bias"], [-0.38] * 2, rtol=1e-5)


def test_decay_of_biases_spares_norms():
    mask = decay_mask(PARAMS, biases=True)
    assert mask["backbone"]["layer1"] == {"kernel": True, "bias": True}
    norm = {"bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    assert decay_mask(norm, biases=True) == {"bn": {"scale": False, "bias": False}}
    optimizer, _ = make_optimizer(
        10, learning_rate=0.1, weight_decay=0.5, schedule="constant", decay_biases=True
    )
    params = {"kernel": jnp.float32([1.0]), "bias": jnp.float32([2.0])}
    grads = {"kernel": jnp.float32([0.0]), "bias": jnp.float32([0.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-6)


@pytest.mark.parametrize(
    "batch_size, reference, expected", [(16, 16, 0.02), (4, 16, 0.005), (4, 0, 0.02)]
)
def test_rate_grows_with_the_batch(batch_size, reference, expected):
    _, rate = make_optimizer(
        100,
        batch_size,
        learning_rate=0.02,
        reference_batch=reference,
        schedule="constant",
        warmup_steps=10,
        warmup_factor=0.1,
    )
    np.testing.assert_allclose(rate(50), expected, rtol=1e-6)
    np.testing.assert_allclose(rate(0), expected / 10, rtol=1e-6)


def test_scaling_needs_the_batch_size():
    with pytest.raises(ValueError, match="batch_size=0: reference_batch=16"):
        make_optimizer(10, learning_rate=0.1, reference_batch=16)


def test_earlier_layers_learn_slower():
    layers = (("backbone/layer1",), ("backbone/layer10",))
    moved = {}
    for decay in (1.0, 0.5):
        optimizer, _ = make_optimizer(
            10, name="adamw", learning_rate=0.1, layer_decay=decay, layers=layers
        )
        grads = jax.tree.map(jnp.ones_like, PARAMS)
        moved[decay], _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    plain, slow = moved[1.0], moved[0.5]
    for name, factor in (("layer1", 0.25), ("layer10", 0.5)):
        for a, b in zip(
            jax.tree.leaves(slow["backbone"][name]),
            jax.tree.leaves(plain["backbone"][name]),
            strict=True,
        ):
            np.testing.assert_allclose(a, factor * b, rtol=1e-6)
    np.testing.assert_array_equal(slow["head"]["kernel"], plain["head"]["kernel"])


def test_a_layer_that_names_nothing_is_refused():
    optimizer, _ = make_optimizer(
        10, learning_rate=0.1, layer_decay=0.5, layers=(("backbone/stage1",),)
    )
    with pytest.raises(ValueError, match="backbone/stage1.*names no parameter"):
        optimizer.init(PARAMS)
