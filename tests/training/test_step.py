"""The training step: its losses, updates, keys and devices.

One deep thing: what `training.step` promises of one step, by small models.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frcnn_jax import models, targets
from frcnn_jax.losses import rpn_loss
from frcnn_jax.training import devices
from frcnn_jax.training.algorithms.faster_rcnn import rpn_losses, rpn_proposals
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import (
    eval_variables,
    initial_state,
    keep,
    merge,
    running_mean,
)
from frcnn_jax.training.step import (
    image_keys,
    image_losses,
    predict_step,
    propose_step,
    train_losses,
    train_step,
)
from frcnn_jax.types import Proposals
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
def compiled(frozen=(), axis=None, accumulate=1):
    """A fresh state and the step, compiled once for all tests of this file."""
    c = small.config(accumulate=accumulate, ema_decay=0.9).to_dict()
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05, momentum=0.9)
    make = partial(
        initial_state,
        *(KEY, (*small.CANVAS, 3)),
        model=model,
        optimizer=optimizer,
        ema=True,
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


def run(batches, *, frozen=(), axis=None, accumulate=1):
    state, step = compiled(frozen, axis, accumulate)
    for batch in batches:
        state, metrics = step(state, devices.shard(batch) if axis else batch, KEY)
    return state, metrics


@pytest.mark.slow
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


def test_accumulated_parts_equal_the_whole_batch_at_once():
    """Every image draws its own samples, and normalisers are fixed: only rounding."""
    batches = [small.batch(seed, images=4) for seed in range(3)]
    whole, metrics = run(batches)
    parts, metrics_of_parts = run(batches, accumulate=2)
    for name, value in metrics.items():
        np.testing.assert_allclose(
            value, metrics_of_parts[name], rtol=2e-4, err_msg=name
        )
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6)
    jax.tree.map(close, whole.params, parts.params)


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"accumulate=3 .* 4 images .*\[1, 2, 4\]"):
        run([small.batch(0, images=4)], accumulate=3)


def test_running_mean_of_the_parameters_by_hand():
    """d = min(0.9, (1 + step) / (10 + step)): 2/11, then 3/12."""
    batches = [small.batch(seed, images=4) for seed in range(2)]
    states = [compiled()[0], run(batches[:1])[0], run(batches)[0]]
    p0, p1, p2 = (s.params["box_head"]["fc1"]["kernel"] for s in states)
    first = 2 / 11 * p0 + 9 / 11 * p1
    second = 3 / 12 * first + 9 / 12 * p2
    for state, mean in zip(states, (p0, first, second), strict=True):
        found = eval_variables(state)["params"]["box_head"]["fc1"]["kernel"]
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-8)
    late = running_mean({"a": 1.0}, {"a": 2.0}, jnp.int32(10**6), decay=0.9)
    np.testing.assert_allclose(late["a"], 1.1, rtol=1e-6)


def test_metrics_name_the_part_and_count_the_rois():
    frozen = ("backbone", "fpn", "rpn_head/conv")
    _, metrics = run([small.batch(0, images=4)], frozen=frozen)
    for name in ("grad_norm", "update_norm"):
        parts = {k: v for k, v in metrics.items() if k.startswith(name + "_")}
        assert set(parts) == {f"{name}_rpn_head", f"{name}_box_head"}
        whole = np.linalg.norm(list(parts.values()))
        np.testing.assert_allclose(metrics[name], whole, rtol=1e-5)
    # SGD without momentum yet: the first update is 0.05 times the gradient.
    np.testing.assert_allclose(
        metrics["update_norm"], 0.05 * metrics["grad_norm"], rtol=1e-4
    )
    assert 0 < metrics["roi_positive"] <= 0.25  # at most fg_fraction
    assert 0 <= metrics["fg_accuracy"] <= 1


def test_accuracy_counts_the_objects_whose_class_leads(setup):
    """Logits that are all zero lead with background; then class 2 leads everywhere."""
    c, model, _, state = setup
    batch = small.batch(0)
    batch = batch._replace(gt_classes=np.where(batch.gt_valid, [[2]], 0))
    batch = jax.tree.map(jnp.asarray, batch)
    zero = jax.tree.map(jnp.zeros_like, state.params["box_head"])
    bias = zero["class_logits"]["bias"].at[2].set(9.0)
    keys = image_keys(KEY, jnp.int32(0), batch.index)

    @jax.jit
    def count(params):
        def compute(model):
            return image_losses(model, batch, keys, c)[1]

        return model.apply({"params": params, **state.model_state}, method=compute)

    none = count(state.params | {"box_head": zero})
    assert (none["positive"] > 0).all() and (none["correct"] == 0).all()
    zero = zero | {"class_logits": zero["class_logits"] | {"bias": bias}}
    second = count(state.params | {"box_head": zero})
    np.testing.assert_array_equal(second["correct"], second["positive"])


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

    def total(params):
        terms = losses(params, batch)
        return sum(terms.values()), terms

    grads, terms = jax.jit(jax.grad(total, has_aux=True))(setup[3].params)
    assert terms["rpn_box"] == 0 and terms["roi_box"] == 0
    assert terms["rpn_cls"] > 0 and terms["roi_cls"] > 0
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
    assert a.shape == (2, 4)
    assert (a == b[::-1]).all()
    assert len(np.unique(jax.random.key_data(a).reshape(8, -1), axis=0)) == 8
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


# ------------------------------------------------------------------- the paper's forms


def two_images():
    batch = jax.tree.map(jnp.asarray, small.batch(0))
    return batch, image_keys(KEY, jnp.int32(0), batch.index)


@pytest.mark.slow
def test_papers_normaliser_is_the_number_of_locations(setup):
    """Eq. (1): lambda / N_reg in place of 1 / 256 changes the box term by its ratio."""
    c, model, _, state = setup
    (batch, keys), locations = two_images(), 16 * 16 + 8 * 8
    group = dict(c["rpn_loss"], box_normalizer=locations)
    practice, paper = (
        jax.jit(partial(model.apply, config=config, method=train_losses))(
            {"params": state.params, **state.model_state}, batch, keys
        )
        for config in (c, dict(c, rpn_loss=group))
    )
    samples = c["rpn_targets"]["num_samples"]
    assert paper["rpn_box"] > 0
    np.testing.assert_allclose(
        paper["rpn_box"] * locations, practice["rpn_box"] * samples, rtol=1e-5
    )
    for name in ("rpn_cls", "roi_cls", "roi_box"):
        np.testing.assert_allclose(paper[name], practice[name], rtol=1e-6)


def test_rpn_losses_equal_the_sum_over_all_images(setup):
    """One sum over the batch, divided by images x samples, as torchvision writes it."""
    c, model, _, state = setup
    batch, keys = two_images()
    keys = keys[:, 0]

    def both(model):
        out = model.rpn(model.normalize(batch.image, batch.image_size))
        axes = (0, 0, 0, 0, 0, 0, None, None)
        t = jax.vmap(partial(targets.rpn_targets, **c["rpn_targets"]), axes)(
            keys,
            *(out.anchors, batch.gt_boxes, batch.gt_valid),
            *(batch.gt_ignore, batch.image_size, out.inside, out.places),
        )
        n = 2 * c["rpn_targets"]["num_samples"]
        rows = (out.logits, out.deltas, t.labels, t.deltas)
        whole = rpn_loss(*rows, normalizer=n, **c["rpn_loss"])
        return rpn_losses(out, batch, keys, c), whole  # [b] each, and scalars

    variables = {"params": state.params, **state.model_state}
    ours, (cls, box) = jax.jit(partial(model.apply, method=both))(variables)
    np.testing.assert_allclose(ours["rpn_cls"].mean(), cls, rtol=1e-5)
    np.testing.assert_allclose(ours["rpn_box"].mean(), box, rtol=1e-5)


def test_anchors_across_the_border_do_not_train_and_proposals_are_clipped(setup):
    c, model, _, state = setup
    c = dict(c, rpn_targets=dict(c["rpn_targets"], straddle=0))
    batch, keys = two_images()
    keys = keys[:, 0]
    variables = {"params": state.params, **state.model_state}

    @jax.jit
    def gradient(variables):
        def run(model):
            out = model.rpn(model.normalize(batch.image, batch.image_size))

            def loss(logits, deltas):
                moved = out._replace(logits=logits, deltas=deltas)
                return sum(x.mean() for x in rpn_losses(moved, batch, keys, c).values())

            return out, jax.grad(loss, (0, 1))(out.logits, out.deltas)

        return model.apply(variables, method=run)

    out, (by_logits, by_deltas) = gradient(variables)
    h, w = np.asarray(batch.image_size).T[..., None]
    x1, y1, x2, y2 = np.moveaxis(np.asarray(out.anchors), -1, 0)
    inside = (x1 >= 0) & (y1 >= 0) & (x2 <= w) & (y2 <= h)
    assert 0 < inside.sum() < inside.size
    assert (np.asarray(by_logits)[~inside] == 0).all()
    assert (np.asarray(by_deltas)[~inside] == 0).all()
    assert (np.asarray(by_logits)[inside] != 0).any()

    found = jax.jit(partial(propose_step, model=model, config=c))(variables, batch)
    limit = batch.image_size[:, None, [1, 0]]
    assert found.valid.any()
    assert (found.boxes >= 0).all() and (found.boxes[..., 2:] <= limit).all()


@pytest.mark.slow
def test_rpn_without_its_parts_is_table_2s():
    """No NMS: all of them; no scores: another order; no deltas: the anchors."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (50, 2))
    anchors = np.concatenate([corner, corner + 20], 1).astype(np.float32)
    deltas = rng.normal(0, 0.1, (2, 50, 4)).astype(np.float32)
    logits = np.tile(np.linspace(3, -3, 50, dtype=np.float32), (2, 1))
    every = jnp.broadcast_to(anchors, (2, 50, 4))
    out = models.RPNOutput({}, every, jnp.array(logits), jnp.array(deltas), (50,))
    size = jnp.full((2, 2), 80)

    def select(**changes):
        return rpn_proposals(out, size, **{"post_nms": 50, "nms_iou": 1.0, **changes})

    everything, suppressed = select(), select(nms_iou=0.3)
    assert everything.valid.all() and suppressed.valid.sum() < 60
    unmoved = select(use_deltas=False)
    np.testing.assert_allclose(unmoved.boxes, np.stack([anchors] * 2), atol=1e-5)
    np.testing.assert_array_equal(unmoved.scores, everything.scores)
    shuffled = select(use_scores=False)
    for some, rows in zip(shuffled.boxes, everything.boxes, strict=True):
        assert not np.array_equal(some, rows)
        np.testing.assert_allclose(np.sort(some, 0), np.sort(rows, 0), atol=1e-5)
    # One draw for all images: the anchors' order is that of the other image.
    order = select(use_scores=False, use_deltas=False).boxes
    np.testing.assert_array_equal(order[0], order[1])


# --------------------------------------------------------------------------- Fast R-CNN


def fast_config():
    c = small.config().to_dict()
    c["model"] = {k: v for k, v in c["model"].items() if k not in ("anchors", "rpn")}
    c["model"]["external_proposals"] = True
    c["algorithm"] = "fast_rcnn"
    c["model"]["box_head"] = dict(name="vgg", widths=(16, 16))  # with dropout
    return c


def with_proposals(batch, count=6, slots=8):
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 30, (len(batch.index), slots, 2))
    boxes = np.concatenate([start, start + rng.uniform(10, 34, start.shape)], -1)
    valid = np.broadcast_to(np.arange(slots) < count, boxes.shape[:2])
    boxes = np.where(valid[..., None], boxes, 0).astype(np.float32)
    scores = np.zeros(valid.shape, np.float32)
    return batch._replace(proposals=Proposals(boxes, scores, valid))


@functools.cache
def compiled_fast(axis=None):
    c = fast_config()
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        trainable=trainable_mask(state.params),
        config=c,
        axis_name=axis,
    )
    if axis is None:
        return model, state, jax.jit(step)
    step = devices.parallel(step, in_axes=(None, 0, None), out_axes=(None, None))
    return model, devices.replicated(state), step


@pytest.mark.slow
def test_fast_rcnn_trains_alike_on_one_and_two_devices():
    """With dropout and padded proposals; it learns, and has no losses of an RPN."""
    batch = with_proposals(small.batch(0, images=4))
    finals = []
    for axis in (None, "batch"):
        _, state, step = compiled_fast(axis)
        metrics = []
        for _ in range(3):
            state, m = step(state, devices.shard(batch) if axis else batch, KEY)
            metrics.append(m)
        finals.append((state.params, metrics[-1]))
    assert {"roi_cls", "roi_box", "total", "grad_norm_box_head"} <= set(finals[0][1])
    assert not any("rpn" in name for name in finals[0][1])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=2e-3, atol=5e-6), finals[0], finals[1]
    )
    assert metrics[-1]["total"] < metrics[0]["total"]


@pytest.mark.slow
def test_fast_rcnn_ignores_what_lies_in_empty_slots():
    model, state, step = compiled_fast()
    batch = with_proposals(small.batch(0, images=4))
    p = batch.proposals
    garbage = np.where(p.valid[..., None], p.boxes, np.nan)
    other = batch._replace(proposals=p._replace(boxes=garbage))
    small.assert_trees_equal(step(state, batch, KEY)[1], step(state, other, KEY)[1])


def test_fast_rcnn_detects_only_what_was_proposed():
    model, state, _ = compiled_fast()
    c = fast_config()
    c["postprocess"] = dict(c["postprocess"], score=0.0)
    predict = jax.jit(partial(predict_step, model=model, config=c))
    variables = {"params": state.params, **state.model_state}
    none = with_proposals(small.batch(0), count=0)
    assert not predict(variables, none).valid.any()
    one = with_proposals(small.batch(0), count=1)
    found = predict(variables, one)
    assert found.valid.sum() == 2 * 3  # each image's proposal as each of three classes
    # The box offsets of a fresh head are next to nothing.
    np.testing.assert_allclose(
        found.boxes[1, :3],
        np.broadcast_to(one.proposals.boxes[1, :1], (3, 4)),
        atol=0.5,
    )


def test_fast_rcnn_without_proposals_says_where_they_come_from():
    model, state, step = compiled_fast()
    with pytest.raises(ValueError, match="data.proposals=FILE.*make_proposals"):
        step(state, small.batch(0, images=4), KEY)
