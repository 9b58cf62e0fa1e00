import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frcnn_jax import models
from frcnn_jax.training import devices
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.step import (
    image_keys,
    initial_state,
    keep,
    merge,
    predict_step,
    train_losses,
    train_step,
)
from tests.training import small

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def setup():
    c = small.config().to_dict()
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    return c, model, optimizer, state


@pytest.fixture(scope="module")
def losses(setup):
    c, model, _, state = setup

    @jax.jit
    def compute(params, batch):
        keys = image_keys(KEY, jnp.int32(0), batch.index)
        return model.apply(
            {"params": params, **state.model_state}, batch, keys, c, method=train_losses
        )

    return compute


@functools.cache
def compiled(frozen=(), axis=None):
    """A fresh state and the step, compiled once for all tests of this file."""
    c = small.config().to_dict()
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05, momentum=0.9)
    make = partial(
        initial_state, KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer
    )
    trainable = trainable_mask(make().params, frozen)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        trainable=trainable,
        config=c,
        axis_name=axis,
    )
    if axis is None:
        return make(trainable=trainable), jax.jit(step)
    step = devices.parallel(step, in_axes=(None, 0, None), out_axes=(None, None))
    return devices.replicated(make(trainable=trainable)), step


def run(batches, *, frozen=(), axis=None):
    state, step = compiled(frozen, axis)
    for batch in batches:
        state, metrics = step(state, devices.shard(batch) if axis else batch, KEY)
    return state, metrics


def test_two_devices_equal_one_device_with_the_whole_batch():
    batches = [small.batch(seed, images=4) for seed in range(3)]
    one, metrics_one = run(batches)
    two, metrics_two = run(batches, axis="batch")
    for name, value in metrics_one.items():
        np.testing.assert_allclose(value, metrics_two[name], rtol=2e-4, err_msg=name)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6),
        one.params,
        two.params,
    )


def test_same_inputs_give_the_same_bits():
    batches = [small.batch(seed, images=4) for seed in range(2)]
    small.assert_trees_equal(run(batches)[0], run(batches)[0])


def test_step_compiles_once(setup):
    c, model, optimizer, state = setup
    compiled = []
    listener = lambda event, *_, **__: compiled.append(event)  # noqa: E731
    step = devices.parallel(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            trainable=trainable_mask(state.params),
            config=c,
        ),
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
    )
    state = devices.replicated(jax.tree.map(jnp.copy, state))
    batches = [devices.shard(small.batch(seed, boxes=seed)) for seed in range(4)]
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        state, _ = step(state, batches[0], KEY)
        first = sum("backend_compile" in event for event in compiled)
        for batch in batches[1:]:
            state, _ = step(state, batch, KEY)
        total = sum("backend_compile" in event for event in compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert first >= 1
    assert total == first


def test_frozen_parameters_keep_their_bits_and_have_no_momentum(setup):
    _, _, _, before = setup
    frozen = ("backbone", "fpn", "rpn_head/conv")
    after, _ = run([small.batch(0, images=4)] * 2, frozen=frozen)
    for part in ("backbone", "fpn"):
        small.assert_trees_equal(before.params[part], after.params[part])
    small.assert_trees_equal(
        before.params["rpn_head"]["conv"], after.params["rpn_head"]["conv"]
    )
    for name in ("objectness", "deltas"):
        a, b = (s.params["rpn_head"][name]["kernel"] for s in (before, after))
        assert np.abs(a - b).max() > 0
    momentum = jax.tree.leaves(after.opt_state)
    trained = keep(after.params, trainable_mask(after.params, frozen))
    assert len(momentum) == len(jax.tree.leaves(trained))


def test_image_without_objects_has_finite_losses_and_gradients(setup, losses):
    batch = small.batch(0, boxes=0)
    terms = losses(setup[3].params, batch)
    assert terms["rpn_box"] == 0 and terms["roi_box"] == 0
    assert terms["rpn_cls"] > 0 and terms["roi_cls"] > 0
    grads = jax.grad(lambda p: sum(losses(p, batch).values()))(setup[3].params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_garbage_in_padding_changes_nothing(setup, losses):
    batch = small.batch(0)
    padding = ~batch.gt_valid
    image = batch.image.copy()
    image[0, 48:] = 99  # below image_size
    other = batch._replace(
        image=image,
        gt_boxes=np.where(padding[..., None], np.nan, batch.gt_boxes),
        gt_classes=np.where(padding, 77, batch.gt_classes),
        gt_ignore=padding,
    )
    small.assert_trees_equal(
        losses(setup[3].params, batch), losses(setup[3].params, other)
    )


def test_losses_of_a_batch_are_the_mean_of_its_images(setup, losses):
    batch = small.batch(0)
    whole = losses(setup[3].params, batch)
    parts = [
        losses(setup[3].params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        for i in range(2)
    ]
    for name, value in whole.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        np.testing.assert_allclose(value, mean, rtol=1e-5, err_msg=name)


def test_keys_follow_the_example_not_its_place():
    a = image_keys(KEY, jnp.int32(3), jnp.int32([5, 9]))
    b = image_keys(KEY, jnp.int32(3), jnp.int32([9, 5]))
    assert a.shape == (2, 3)
    assert (a == b[::-1]).all()
    assert len(np.unique(jax.random.key_data(a).reshape(6, -1), axis=0)) == 6
    assert not (a == image_keys(KEY, jnp.int32(4), jnp.int32([5, 9]))).any()


def test_predict_finds_valid_boxes_inside_the_image(setup):
    c, model, _, state = setup
    c = dict(c, postprocess=dict(c["postprocess"], score=0.0))
    predict = jax.jit(partial(predict_step, model=model, config=c))
    batch = small.batch(0)
    found = predict({"params": state.params, **state.model_state}, batch)
    assert found.boxes.shape == (2, 10, 4)
    assert found.valid.all()
    limit = batch.image_size[:, None, [1, 0]]
    assert (found.boxes[..., 2:] <= limit).all() and (found.boxes >= 0).all()
    assert set(np.unique(found.classes)) <= {1, 2, 3}


def test_a_batch_can_be_overfitted():
    batches = [small.batch(0, images=4)] * 100
    _, first = run(batches[:1])
    _, last = run(batches)
    assert last["total"] < 0.5 * first["total"]


def test_keep_and_merge_undo_each_other():
    tree, mask = {"a": 1, "b": {"c": 2}}, {"a": True, "b": {"c": False}}
    assert keep(tree, mask) == {"a": 1, "b": {"c": None}}
    assert merge({"a": 7, "b": {"c": None}}, tree) == {"a": 7, "b": {"c": 2}}
