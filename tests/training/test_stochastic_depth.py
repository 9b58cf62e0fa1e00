"""Residual branches are left out by the image: in training, and nowhere else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frcnn_jax import models
from frcnn_jax.ops import maps
from frcnn_jax.training import devices
from frcnn_jax.training.algorithms.faster_rcnn import first_stage
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.training.step import image_keys, train_step
from tests.training import small

KEY = jax.random.key(0)
BACKBONES = {
    "convnext": dict(depths=(2, 2, 1, 1), width=8, out_strides=(4, 8)),
    "swin": dict(depths=(2, 2, 1, 1), width=32, out_strides=(4, 8)),
    "vit": dict(depth=3, width=16, heads=2, window=3, global_blocks=(1,), positions=4),
}


def test_factors_have_the_share_and_the_mean_of_each_block():
    keys = jax.random.split(KEY, 20_000)
    count, rate = 3, 0.4
    found = jax.jit(partial(maps.branch_factors, count=count, rate=rate, each=2))(keys)
    assert found.shape == (20_000, 6) and found.dtype == jnp.float32
    for i in range(count):
        p = rate * i / (count - 1)
        for column in np.asarray(found).T[2 * i : 2 * i + 2]:
            kept = column > 0
            np.testing.assert_allclose(kept.mean(), 1 - p, atol=0.02)
            np.testing.assert_allclose(column[kept], 1 / (1 - p), rtol=1e-6)
    assert (found[:, 4] != found[:, 5]).mean() > 0.3  # drawn apart


def build(name, rate):
    c = small.config().to_dict()
    c["model"]["backbone"] = dict(name=name, stochastic_depth=rate, **BACKBONES[name])
    if name == "vit":
        pyramid = dict(name="simple_pyramid", scales=(4, 2), pool_levels=0)
        c["model"]["fpn"] = dict(channels=8, **pyramid)
    return c, models.build_detector(num_classes=3, **c["model"])


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_draws_by_its_key_alone(name):
    _, model = build(name, 0.5)
    off = model.clone(backbone=model.backbone.clone(stochastic_depth=0.0))
    batch = small.batch(0, images=4)
    start = model.init(KEY, jnp.zeros((1, *small.CANVAS, 3)))
    # Larger than they start, so that a branch that is left out is seen.
    variables = jax.tree.map(lambda x: x + 0.1 * (x.ndim == 1), start)

    @partial(jax.jit, static_argnums=(0, 3))
    def run(model, variables, batch, drawn):
        keys = image_keys(KEY, jnp.int32(0), batch.index) if drawn else None
        stage = partial(first_stage, batch=batch, keys=keys)
        return model.apply(variables, method=stage).features

    whole = run(model, variables, batch, True)
    again = run(model, variables, jax.tree.map(lambda x: x[::-1], batch), True)
    plain, zero = run(model, variables, batch, False), run(off, variables, batch, True)
    for stride, x in whole.items():
        np.testing.assert_allclose(again[stride][::-1], x, atol=1e-5)
        np.testing.assert_allclose(plain[stride], zero[stride], atol=1e-5)
        changed = np.abs(x - plain[stride]).max((1, 2, 3)) > 1e-3
        assert changed.any()
    twins = batch._replace(image=np.broadcast_to(batch.image[:1], batch.image.shape))
    same = run(model, variables, twins, True)[8]
    assert (np.abs(same - same[:1]).max((1, 2, 3)) > 1e-3).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext", "swin"])
def test_one_and_two_devices_train_alike(name):
    c, model = build(name, 0.5)
    optimizer = optax.sgd(0.02, momentum=0.9)
    batch = small.batch(0, images=4)
    finals = []
    for axis in (None, "batch"):
        state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
        step = partial(
            train_step,
            model=model,
            optimizer=optimizer,
            trainable=trainable_mask(state.params),
            config=c,
            axis_name=axis,
        )
        if axis:
            state = devices.replicated(state)
            step = devices.parallel(
                step, in_axes=(None, 0, None), out_axes=(None, None)
            )
        else:
            step = jax.jit(step)
        for _ in range(2):
            state, metrics = step(state, devices.shard(batch) if axis else batch, KEY)
        finals.append((state.params, metrics))
    compare = partial(np.testing.assert_allclose, rtol=2e-3, atol=5e-6)
    jax.tree.map(compare, *finals)
