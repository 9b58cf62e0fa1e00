"""Norms in the training step: what moves, what does not, and on how many devices."""

import functools
from functools import partial

import jax
import numpy as np
import optax
import pytest

from frcnn_jax import models
from frcnn_jax.training import devices
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.training.step import predict_step, train_step
from tests.training import small

KEY = jax.random.key(0)


def config(fpn):
    """Norms that learn in the neck, frozen ones in the box head, groups before both."""
    c = small.config().to_dict()
    c["model"]["fpn"] = dict(channels=8, norm=fpn)
    c["model"]["box_head"] = dict(convs=(8,), widths=(16,), norm="frozen")
    return c


@functools.cache
def trained(fpn, axis=None):
    """The model, and its state before and after two steps on four images."""
    c = config(fpn)
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05)
    before = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        trainable=trainable_mask(before.params),
        config=c,
        axis_name=axis,
    )
    if axis is None:
        step, state = jax.jit(step), before
    else:
        step = devices.parallel(step, in_axes=(None, 0, None), out_axes=(None, None))
        state = devices.replicated(before)
    for seed in range(2):
        batch = small.batch(seed, images=4)
        state, metrics = step(state, devices.shard(batch) if axis else batch, KEY)
    return model, before, jax.device_get(state), metrics


def moved(before, after):
    return jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), before, after)


@pytest.mark.slow
def test_batch_norm_moves_and_learns_and_frozen_norm_keeps_its_bits():
    _, before, after, _ = trained("batch")
    statistics = moved(before.model_state, after.model_state)["batch_stats"]
    assert all(jax.tree.leaves(statistics["fpn"]))
    assert not any(jax.tree.leaves(statistics["box_head"]))
    params = moved(before.params, after.params)
    assert params["fpn"]["output4_norm"] == dict(scale=True, bias=True)
    assert params["box_head"]["conv1_norm"] == dict(scale=False, bias=False)
    assert params["box_head"]["conv1"] == dict(kernel=True)
    assert params["backbone"]["stem_norm"] == dict(scale=True, bias=True)  # groups


@pytest.mark.slow
def test_synchronised_norm_on_two_devices_equals_one_device_with_all_images():
    _, _, one, metrics = trained("batch")
    _, _, two, metrics_of_two = trained("sync", "batch")
    for name, value in metrics.items():
        np.testing.assert_allclose(value, metrics_of_two[name], rtol=2e-3, err_msg=name)
    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5)
    jax.tree.map(close, one.model_state, two.model_state)
    jax.tree.map(close, one.params, two.params)


def test_prediction_takes_the_stored_statistics(rng):
    """So that what else is in the batch changes nothing, and no statistics move."""
    c = config("batch")
    c["postprocess"]["score"] = 0.0
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05)
    state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    statistics = jax.tree.map(
        lambda x: np.float32(rng.uniform(0.5, 1.5, x.shape)), state.model_state
    )
    predict = jax.jit(partial(predict_step, model=model, config=c))
    variables = {"params": state.params, **statistics}
    batch, other = small.batch(0), small.batch(5)
    mixed = batch._replace(image=np.stack([batch.image[0], other.image[1]]))
    found = predict(variables, batch)
    for a, b in zip(found, predict(variables, mixed), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    fresh = predict({"params": state.params, **state.model_state}, batch)
    assert (found.boxes != fresh.boxes).any()  # they do take part
