"""Cascade R-CNN's refinement against a NumPy loop, and its step as a whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import common
from frcnn_jax import cascade, losses, models
from frcnn_jax.training import config as configs
from frcnn_jax.training import rehearsal
from frcnn_jax.training.algorithms import cascade_rcnn, faster_rcnn
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.training.step import image_keys, predict_step, train_step
from frcnn_jax.types import RoITargets
from tests.training import small

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (1 / 30, 1 / 30, 1 / 15, 1 / 15))
KEY = jax.random.key(0)


# ---------------------------------------------------------------- the slow reference


def slow_move(box, delta, stds, size):
    """Eq. (2) undone and clipped, in float64."""
    (x1, y1, x2, y2), (tx, ty, tw, th) = box, np.float64(delta) * stds
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + tx * w, y1 + h / 2 + ty * h
    w, h = w * np.exp(min(tw, np.log(62.5))), h * np.exp(min(th, np.log(62.5)))
    corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.clip(corners, 0, [size[1], size[0], size[1], size[0]])


def slow_iou(a, b):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return w * h / (area - w * h)


def slow_targets(box, objects, classes, fg_iou, stds):
    """(label, deltas) of one box with area."""
    overlaps = [slow_iou(box, g) for g in objects]
    if not overlaps or max(overlaps) < fg_iou:
        return 0, np.zeros(4)
    g = objects[int(np.argmax(overlaps))]
    w, h = box[2] - box[0], box[3] - box[1]
    off = [
        (g[0] + g[2] - box[0] - box[2]) / 2 / w,
        (g[1] + g[3] - box[1] - box[3]) / 2 / h,
    ]
    size = [np.log((g[2] - g[0]) / w), np.log((g[3] - g[1]) / h)]
    return classes[int(np.argmax(overlaps))], np.array([*off, *size]) / stds


def scene(rng, r=40, g=5, used=3):
    corner = rng.uniform(0, 60, (g, 2))
    gt = np.concatenate([corner, corner + rng.uniform(15, 40, (g, 2))], 1)
    of = rng.integers(0, used, r)
    rois = np.clip(gt[of] + rng.normal(0, 4, (r, 4)), 0, 110)
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 3)
    classes, valid = rng.integers(1, 5, g).astype(np.int32), np.arange(g) < used
    return rois.astype(np.float32), gt.astype(np.float32), classes, valid


def test_three_stages_are_those_of_a_loop(rng):
    """Boxes, labels and deltas of every RoI after each refinement."""
    rois, gt, classes, gt_valid = scene(rng)
    size, valid = np.array([90, 100]), np.arange(len(rois)) < 35
    deltas = rng.normal(0, 1, (2, len(rois), 1, 4)).astype(np.float32)
    boxes, slow = rois, np.float64(rois)
    positives = 0
    for i, fg_iou in enumerate((0.6, 0.7)):
        boxes = cascade.refine(boxes, valid, deltas[i], size, stds=STDS[i])
        t = cascade.stage_targets(
            *(boxes, valid, gt, classes, gt_valid), fg_iou=fg_iou, stds=STDS[i + 1]
        )
        moved = [
            slow_move(box, d[0], STDS[i], size)
            for box, d in zip(slow, deltas[i], strict=True)
        ]
        slow = np.where(valid[:, None], moved, 0.0)
        np.testing.assert_allclose(boxes, slow, rtol=1e-5, atol=1e-3)
        boxes = t.boxes
        for row in range(len(rois)):
            if not valid[row]:
                assert t.labels[row] == -1 and not np.any(t.deltas[row])
                continue
            label, wanted = slow_targets(
                slow[row], gt[gt_valid], classes[gt_valid], fg_iou, STDS[i + 1]
            )
            assert t.labels[row] == label
            np.testing.assert_allclose(t.deltas[row], wanted, rtol=1e-3, atol=1e-3)
            positives += label > 0
    assert 10 < positives < 60


def test_padding_may_hold_anything_and_gives_no_gradient(rng):
    rois, gt, classes, gt_valid = scene(rng)
    valid = np.arange(len(rois)) < 30
    deltas = rng.normal(0, 1, (len(rois), 1, 4)).astype(np.float32)

    def run(rois, deltas, gt):
        boxes = cascade.refine(rois, valid, deltas, (90, 100))
        return cascade.stage_targets(boxes, valid, gt, classes, gt_valid)

    clean = run(rois, deltas, gt)
    rois[30:], deltas[30:], gt[3:] = np.nan, np.nan, np.nan
    small.assert_trees_equal(run(rois, deltas, gt), clean)
    total = lambda *a: sum(x.sum() for x in run(*a) if x.dtype == jnp.float32)  # noqa: E731
    for gradient in jax.grad(total, (0, 1, 2))(*map(jnp.asarray, (rois, deltas, gt))):
        assert not np.any(gradient)


def test_without_objects_all_is_background_and_crowds_are_left_out(rng):
    rois, gt, classes, gt_valid = scene(rng)
    valid = np.ones(len(rois), bool)
    none = cascade.stage_targets(rois, valid, gt, classes, np.zeros(5, bool))
    assert (np.asarray(none.labels) == 0).all() and not np.any(none.deltas)
    empty = cascade.stage_targets(rois, valid, gt[:0], classes[:0], gt_valid[:0])
    small.assert_trees_equal(empty, none)
    crowd = np.array([[0.0, 0, 110, 110]], np.float32)
    one, yes = np.ones(1, np.int32), np.ones(1, bool)
    inside = cascade.stage_targets(rois, valid, crowd, one, yes, yes)
    assert (np.asarray(inside.labels) == -1).all()
    flat = rois.copy()
    flat[0, 2] = flat[0, 0]
    assert cascade.stage_targets(flat, valid, gt, classes, gt_valid).labels[0] == -1


def test_deltas_of_several_classes_are_refused():
    boxes, valid = jnp.zeros((2, 4)), jnp.ones(2, bool)
    with pytest.raises(ValueError, match="class-agnostic"):
        cascade.refine(boxes, valid, jnp.zeros((2, 3, 4)), jnp.array([9, 9]))


def test_mean_of_scores(rng):
    logits = rng.normal(0, 3, (3, 6, 5)).astype(np.float32)
    p = np.exp(np.float64(logits))
    p = (p / p.sum(-1, keepdims=True)).mean(0)
    found = jax.nn.softmax(cascade.mean_logits(logits))
    np.testing.assert_allclose(found, p, rtol=1e-5)


# --------------------------------------------------------------------------- the step


def config(**changes):
    c = small.config()
    common.cascade(c, **changes)
    rehearsal.check_groups(configs.check(c))
    return configs.check(c)


def setup(c):
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.02, momentum=0.9)
    state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    return model, optimizer, state


def test_a_step_learns_in_every_stage():
    c = config()
    model, optimizer, state = setup(c)
    step = jax.jit(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            trainable=trainable_mask(state.params),
            config=c,
            axis_name=None,
        )
    )
    batch, totals = small.batch(0), []
    before = state.params["box_head"]
    for _ in range(6):
        state, metrics = step(state, batch, KEY)
        totals.append(float(metrics["total"]))
    assert totals[-1] < totals[0]
    names = {f"roi_{kind}_{i}" for kind in ("cls", "box") for i in (1, 2, 3)}
    assert names | {"rpn_cls", "rpn_box"} == set(cascade_rcnn.loss_names(c))
    assert set(cascade_rcnn.loss_names(c)) <= set(metrics)
    total = sum(c["loss_weights"][n] * metrics[n] for n in c["loss_weights"])
    np.testing.assert_allclose(metrics["total"], total, rtol=1e-5)
    after = state.params["box_head"]
    for stage in ("stages_0", "stages_1", "stages_2"):
        for layer in ("fc1", "class_logits"):
            assert np.any(
                before[stage][layer]["kernel"] != after[stage][layer]["kernel"]
            )
    predict = jax.jit(partial(predict_step, model=model, config=c))
    found = predict({"params": state.params, **state.model_state}, batch)
    assert np.isfinite(found.boxes).all() and found.boxes.shape == (2, 10, 4)


def test_losses_and_detections_are_those_of_the_parts_by_hand():
    """Each stage's RoIs, targets and loss from the stage before, image by image."""
    c = config()
    stds = (STDS[0], *c["cascade"]["stds"])
    model, _, state = setup(c)
    batch = jax.tree.map(jnp.asarray, small.batch(1))
    keys = image_keys(KEY, jnp.int32(0), batch.index)

    def both(model):
        stage = cascade_rcnn.first_stage(model, batch)
        terms, _ = cascade_rcnn.image_losses(model, stage, batch, keys, c)
        props = faster_rcnn.propose(stage, batch, **c["proposals"]["train"])
        rois = faster_rcnn.fast_rcnn.sample(props, batch, keys[:, 1], c)
        hand = {}
        for i in range(3):
            logits, deltas = model.detect_stage(
                stage.features, rois.boxes, i, extent=stage.extent
            )
            rows = []
            for image in range(2):
                t = RoITargets(*(x[image] for x in rois))
                hand.setdefault(f"roi_cls_{i + 1}", []).append(
                    losses.detector_loss(
                        *(logits[image], deltas[image], t.labels, t.deltas),
                        normalizer=16,
                        beta=1 / 9,
                    )[0]
                )
                valid, gt = (
                    t.labels >= 0,
                    (batch.gt_boxes[image], batch.gt_classes[image]),
                )
                boxes = cascade.refine(
                    t.boxes, valid, deltas[image], batch.image_size[image], stds=stds[i]
                )
                if i < 2:
                    rows.append(
                        cascade.stage_targets(
                            *(boxes, valid, *gt, batch.gt_valid[image]),
                            fg_iou=(0.6, 0.7)[i],
                            stds=stds[i + 1],
                        )
                    )
            if i < 2:
                rois = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        return terms, hand

    variables = {"params": state.params, **state.model_state}
    terms, hand = jax.jit(partial(model.apply, method=both))(variables)
    for name, values in hand.items():
        np.testing.assert_allclose(terms[name], jnp.stack(values), rtol=1e-5)


@pytest.mark.slow
def test_gradient_of_the_last_stage_is_the_finite_difference(rng):
    """By the bias of the deltas of each stage: no gradient flows through the boxes."""
    c = config()
    model, _, state = setup(c)
    batch = jax.tree.map(jnp.asarray, small.batch(1))
    keys = image_keys(KEY, jnp.int32(0), batch.index)

    @jax.jit
    @jax.value_and_grad
    def loss(kernel):
        head = state.params["box_head"]
        last = head["stages_2"]
        changed = {**last, "class_deltas": {**last["class_deltas"], "kernel": kernel}}
        params = {**state.params, "box_head": {**head, "stages_2": changed}}

        def run(model):
            stage = cascade_rcnn.first_stage(model, batch)
            terms, _ = cascade_rcnn.image_losses(model, stage, batch, keys, c)
            return sum(x.mean() for x in terms.values())

        return model.apply({"params": params, **state.model_state}, method=run)

    kernel = state.params["box_head"]["stages_2"]["class_deltas"]["kernel"]
    _, gradient = loss(kernel)
    way = jnp.asarray(rng.normal(0, 1, kernel.shape), jnp.float32)
    e = 1e-2
    slope = (loss(kernel + e * way)[0] - loss(kernel - e * way)[0]) / (2 * e)
    np.testing.assert_allclose(slope, (gradient * way).sum(), rtol=2e-2, atol=1e-4)


def test_the_gradient_of_the_features_is_scaled():
    x = jnp.array([1.0, 2.0])
    run = lambda x: (cascade_rcnn.scale_gradient({"a": x}, 1 / 3)["a"] ** 2).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(run)(x)
    assert value == 5.0
    np.testing.assert_allclose(gradient, 2 * x / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (("cascade", "fg_iou", (0.6,)), "1 fg_iou but 2 stds"),
        (("model", "stages", 2), "model.stages=2 but config.cascade has 2"),
        (("postprocess", "stds", STDS[0]), "cascade.stds ends in.*postprocess.stds"),
    ],
)
def test_groups_that_do_not_fit_are_refused(change, message):
    c = small.config()
    common.cascade(c)
    group, leaf, value = change
    c[group][leaf] = value
    if leaf == "stages":
        c.loss_weights = {k: 1.0 for k in cascade_rcnn.loss_names(c.to_dict())}
    with pytest.raises(ValueError, match=message):
        configs.check(c)


def test_a_head_of_boxes_by_class_is_refused():
    c = small.config()
    common.cascade(c)
    c.model.box_head.class_agnostic = False
    with pytest.raises(ValueError, match="refines one box a RoI"):
        models.build_detector(num_classes=3, **c.model.to_dict())


def test_c4_has_a_stage_of_the_backbone_in_every_box_head():
    c = small.config().to_dict()["model"]
    model = models.build_detector(
        num_classes=3,
        stages=3,
        backbone=dict(name="resnet", depth=18, out_strides=(16,), norm="frozen"),
        anchors=dict(strides=(16,), sizes=((16, 32),)),
        rpn=c["rpn"],
        roi_align=dict(strides=(16,), output_size=6),
        box_head=dict(name="resnet", depth=18),
    )
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 64, 64, 3)))["params"]
    assert all("layer4" in shapes["box_head"][f"stages_{i}"] for i in range(3))


def test_a_larger_canvas_changes_nothing():
    """Every stage pools within the image's extent, as the first one does."""
    c = config()
    c["postprocess"] = dict(c["postprocess"], score=0.05)
    model, _, state = setup(c)
    variables = {"params": state.params, **state.model_state}
    predict = jax.jit(partial(predict_step, model=model, config=c))
    batch = small.batch(0)
    room = ((0, 0), (0, 32), (0, 64), (0, 0))
    wide = batch._replace(image=np.pad(batch.image, room))
    one, other = predict(variables, batch), predict(variables, wide)
    assert one.valid.any()
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
