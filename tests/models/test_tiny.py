import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import tiny


def test_one_stage_per_width():
    model = tiny.Backbone(widths=(8, 16, 24), out_strides=(4, 16))
    x = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert {s: f.shape for s, f in features.items()} == {
        4: (2, 10, 13, 8),
        16: (2, 3, 4, 24),
    }


def test_every_parameter_learns_and_there_are_no_statistics():
    model = tiny.Backbone(widths=(8,), groups=4)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    weights = jax.random.normal(jax.random.key(2), (4, 4, 8))

    @jax.jit
    @jax.grad
    def grads(variables):
        features = model.apply(variables, x)
        return (features[4] * weights[None]).sum()

    for g in jax.tree.leaves(grads(variables)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0


def test_wrong_fields_are_named():
    with pytest.raises(
        ValueError, match=r"out_strides=\(4, 16\): 2 widths give \(4, 8"
    ):
        tiny.Backbone(widths=(8, 8), out_strides=(4, 16))
    with pytest.raises(ValueError, match="multiple of groups=8"):
        tiny.Backbone(widths=(8, 12))
