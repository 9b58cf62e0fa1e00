"""Targets of the RPN and the detector: what is labelled, what is drawn, what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import targets
from frcnn_jax.ops import anchors as anchor_ops
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching
from frcnn_jax.types import Proposals

KEY = jax.random.key(0)
ANCHORS = anchor_ops.pyramid([(12, 16), (6, 8)], (8, 16), (16, 32))  # 96 x 128, 720
EVERY = dict(num_samples=2 * 720, fg_fraction=0.5)  # nothing is left to chance

rpn_targets = jax.jit(
    targets.rpn_targets,
    static_argnames=(
        *("fg_iou", "bg_iou", "num_samples", "fg_fraction", "force_best"),
        *("straddle", "exclude_padding", "stds"),
    ),
)
roi_targets = jax.jit(
    targets.roi_targets,
    static_argnames=(
        *("fg_iou", "bg_iou", "bg_lo", "num_samples", "fg_fraction", "stds"),
        "append_gt",
    ),
)


def objects(rng, g=4, slots=6):
    corner, side = rng.uniform(0, 80, (slots, 2)), rng.uniform(12, 40, (slots, 2))
    gt = np.concatenate([corner, corner + side], 1).astype(np.float32)
    gt[g:] = np.nan
    classes = np.where(np.arange(slots) < g, rng.integers(1, 9, slots), 99)
    return jnp.asarray(gt), jnp.asarray(classes), jnp.arange(slots) < g


def encode_by_hand(box, anchor, stds=(1, 1, 1, 1)):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = np.float64(box), np.float64(anchor)
    w, h, wa, ha = x2 - x1, y2 - y1, a2 - a1, b2 - b1
    t = ((x1 + x2 - a1 - a2) / 2 / wa, (y1 + y2 - b1 - b2) / 2 / ha)
    return np.array([*t, np.log(w / wa), np.log(h / ha)]) / stds


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


# -- RPN -------------------------------------------------------------------------------


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_rpn_targets_label_and_encode_every_anchor(rng, stds):
    gt, _, valid = objects(rng)
    ours = rpn_targets(KEY, ANCHORS, gt, valid, **EVERY, stds=stds)
    iou = np.asarray(box_ops.iou(ANCHORS, gt[:4]))
    best = iou.argmax(axis=1)
    labels = np.where(iou.max(axis=1) >= 0.7, 1, -1)
    labels[iou.max(axis=1) < 0.3] = 0
    for j in range(4):
        labels[iou[:, j] >= iou[:, j].max() - 1e-6] = 1
    np.testing.assert_array_equal(ours.labels, labels)
    assert set(labels) == {-1, 0, 1}
    expected = np.zeros((len(ANCHORS), 4))
    for i in np.flatnonzero(labels == 1):
        expected[i] = encode_by_hand(gt[best[i]], ANCHORS[i], stds)
    np.testing.assert_allclose(ours.deltas, expected, rtol=1e-4, atol=1e-4)


def test_rpn_targets_sample_a_fixed_number(rng):
    gt, _, valid = objects(rng)
    every = rpn_targets(KEY, ANCHORS, gt, valid, **EVERY)
    seen = set()
    for seed in range(5):
        ours = rpn_targets(
            jax.random.key(seed), ANCHORS, gt, valid, num_samples=12, fg_fraction=0.25
        )
        drawn = np.asarray(ours.labels) >= 0
        assert (ours.labels == 1).sum() == 3 and drawn.sum() == 12
        np.testing.assert_array_equal(ours.labels[drawn], every.labels[drawn])
        found = np.asarray(ours.labels) == 1
        np.testing.assert_allclose(ours.deltas[found], every.deltas[found], rtol=1e-5)
        assert not np.any(ours.deltas[~found])
        seen.add(tuple(np.flatnonzero(drawn)))
    assert len(seen) == 5


def test_rpn_targets_leave_out_the_padding(rng):
    gt, _, valid = objects(rng)
    inside = np.asarray(box_ops.centered_inside(ANCHORS, (50, 70)))
    size = jnp.array([50, 70])
    ours = rpn_targets(KEY, ANCHORS, gt, valid, None, size, **EVERY)
    assert (ours.labels[~inside] == -1).all() and (ours.labels[inside] == 0).any()
    cropped = rpn_targets(KEY, ANCHORS[inside], gt, valid, **EVERY)
    np.testing.assert_array_equal(ours.labels[inside], cropped.labels)
    np.testing.assert_allclose(ours.deltas[inside], cropped.deltas, rtol=1e-5)
    parity = rpn_targets(
        KEY, ANCHORS, gt, valid, None, size, **EVERY, exclude_padding=False
    )
    assert_equal(parity, rpn_targets(KEY, ANCHORS, gt, valid, **EVERY))


@pytest.mark.parametrize("straddle", [0, 6.0])
def test_rpn_targets_leave_out_anchors_across_the_border(rng, straddle):
    gt, _, valid = objects(rng)
    h, w = 90, 110
    low, high = ANCHORS[:, :2].min(axis=1), jnp.array([[w, h]]) - ANCHORS[:, 2:]
    inside = np.asarray((low >= -straddle) & (high.min(axis=1) >= -straddle))
    ours = rpn_targets(
        KEY, ANCHORS, gt, valid, None, (h, w), **EVERY, straddle=straddle
    )
    assert (ours.labels[~inside] == -1).all() and (~inside).any()
    cropped = rpn_targets(KEY, ANCHORS[inside], gt, valid, **EVERY)
    np.testing.assert_array_equal(ours.labels[inside], cropped.labels)


def test_rpn_targets_give_an_object_its_best_inside_anchor():
    # The best anchor crosses the border: the next one learns the object in its place.
    anchors = jnp.array([[-1.0, 0, 9, 10], [0, 0, 10, 20], [30, 30, 40, 40]])
    gt, one = jnp.array([[0.0, 0, 9, 10]]), jnp.array([True])
    free = rpn_targets(KEY, anchors, gt, one, None, (50, 50), **EVERY)
    assert free.labels.tolist() == [1, -1, 0]
    paper = rpn_targets(KEY, anchors, gt, one, None, (50, 50), **EVERY, straddle=0)
    assert paper.labels.tolist() == [-1, 1, 0]


def test_rpn_targets_need_an_image_for_its_border():
    with pytest.raises(ValueError, match="image_size"):
        targets.rpn_targets(
            KEY, ANCHORS, jnp.zeros((1, 4)), jnp.array([True]), straddle=0
        )


def test_rpn_targets_pass_over_crowds(rng):
    gt = jnp.array([[0.0, 0, 64, 64], [90, 50, 120, 80]])
    valid, crowd = jnp.ones(2, bool), jnp.array([True, False])
    ours = rpn_targets(KEY, ANCHORS, gt, valid, crowd, **EVERY)
    inside = np.asarray(box_ops.ioa(ANCHORS, gt[:1]))[:, 0] >= 0.5
    assert (ours.labels[inside] == -1).all() and (ours.labels == 1).any()
    alone = rpn_targets(KEY, ANCHORS, gt[1:], valid[1:], **EVERY)
    np.testing.assert_array_equal(ours.labels[~inside], alone.labels[~inside])


def test_rpn_targets_do_not_see_padding(rng):
    gt, _, valid = objects(rng)
    rules = dict(num_samples=64)
    ours = rpn_targets(KEY, ANCHORS, gt, valid, ~valid, **rules)
    assert_equal(ours, rpn_targets(KEY, ANCHORS, gt[:4], valid[:4], **rules))
    assert np.isfinite(ours.deltas).all()


@pytest.mark.parametrize("slots", [0, 3])
def test_rpn_targets_without_objects_are_background(slots):
    ours = rpn_targets(
        KEY, ANCHORS, jnp.full((slots, 4), jnp.nan), jnp.zeros(slots, bool)
    )
    assert (ours.labels == 0).sum() == 256 and (ours.labels == -1).sum() == 720 - 256
    assert not np.any(ours.deltas)


def test_rpn_targets_in_a_batch_are_those_of_each_image(rng):
    gt, _, valid = (
        jnp.stack(v) for v in zip(objects(rng), objects(rng, g=2), strict=True)
    )
    keys, sizes = jax.random.split(KEY), jnp.array([[96, 128], [60, 70]])
    rules = dict(num_samples=32, straddle=4.0)
    function = functools.partial(rpn_targets, **rules)
    ours = jax.jit(jax.vmap(function, (0, None, 0, 0, None, 0)))(
        keys, ANCHORS, gt, valid, None, sizes
    )
    for i in range(2):
        alone = function(keys[i], ANCHORS, gt[i], valid[i], None, sizes[i])
        np.testing.assert_array_equal(ours.labels[i], alone.labels)
        np.testing.assert_allclose(ours.deltas[i], alone.deltas, rtol=1e-5, atol=1e-6)


# -- Detector --------------------------------------------------------------------------


def proposals(boxes, valid=None):
    boxes = jnp.asarray(boxes, jnp.float32)
    valid = jnp.ones(len(boxes), bool) if valid is None else jnp.asarray(valid)
    return Proposals(boxes, jnp.ones(len(boxes)), valid)


def by_box(ours):
    """{box: (label, deltas)} of the slots in use."""
    rows = zip(*(np.asarray(v) for v in ours), strict=True)
    return {tuple(b.tolist()): (int(n), d) for b, n, d in rows if n >= 0}


GT = jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40]])
CLASSES, BOTH = jnp.array([7, 2]), jnp.ones(2, bool)
ROIS = [[0.0, 0, 10, 8], [22, 20, 40, 40], [0, 0, 10, 4], [60, 60, 70, 70]]


def test_roi_targets_by_hand():
    ours = roi_targets(KEY, proposals(ROIS), GT, CLASSES, BOTH, num_samples=16)
    rows = by_box(ours)
    expected = {
        (0, 0, 10, 8): (7, encode_by_hand(GT[0], ROIS[0], (0.1, 0.1, 0.2, 0.2))),
        (22, 20, 40, 40): (2, encode_by_hand(GT[1], ROIS[1], (0.1, 0.1, 0.2, 0.2))),
        (0, 0, 10, 4): (0, np.zeros(4)),
        (60, 60, 70, 70): (0, np.zeros(4)),
        (0, 0, 10, 10): (7, np.zeros(4)),  # the objects themselves
        (20, 20, 40, 40): (2, np.zeros(4)),
    }
    assert rows.keys() == expected.keys()
    for box, (label, deltas) in expected.items():
        assert rows[box][0] == label
        np.testing.assert_allclose(rows[box][1], deltas, rtol=1e-4, atol=1e-5)
    # objects first, and nothing in the slots that are left
    assert (ours.labels[:4] >= 1).all() and ours.labels[4:].tolist() == [0, 0] + 10 * [
        -1
    ]
    assert not np.any(ours.boxes[6:]) and not np.any(ours.deltas[4:])


def test_roi_targets_without_the_objects_themselves():
    ours = roi_targets(
        KEY, proposals(ROIS), GT, CLASSES, BOTH, num_samples=16, append_gt=False
    )
    assert by_box(ours).keys() == {tuple(box) for box in ROIS}


def test_roi_targets_background_from_below():
    ours = roi_targets(
        KEY, proposals(ROIS), GT, CLASSES, BOTH, num_samples=16, bg_lo=0.1
    )
    assert (60, 60, 70, 70) not in by_box(ours) and len(by_box(ours)) == 5


def test_roi_targets_sample_a_quarter_of_objects(rng):
    near = np.asarray(GT)[rng.integers(0, 2, 60)] + rng.uniform(-0.5, 0.5, (60, 4))
    far = np.array([[60, 60, 70, 70]]) + rng.uniform(0, 20, (60, 1))
    rois = proposals(np.concatenate([near, far]))
    ours = roi_targets(KEY, rois, GT, CLASSES, BOTH, num_samples=32)
    assert (ours.labels >= 1).sum() == 8 and (ours.labels == 0).sum() == 24
    other = roi_targets(jax.random.key(1), rois, GT, CLASSES, BOTH, num_samples=32)
    assert by_box(other).keys() != by_box(ours).keys()


def test_roi_targets_do_not_see_padding():
    junk = jnp.full((2, 4), jnp.nan)
    ours = roi_targets(
        KEY,
        proposals(jnp.concatenate([jnp.array(ROIS), junk]), [True] * 4 + [False] * 2),
        jnp.concatenate([GT, junk]),
        jnp.array([7, 2, 99, 99]),
        jnp.array([True, True, False, False]),
        num_samples=16,
    )
    short = roi_targets(KEY, proposals(ROIS), GT, CLASSES, BOTH, num_samples=16)
    rows, expected = by_box(ours), by_box(short)
    assert rows.keys() == expected.keys()
    for box, (label, deltas) in expected.items():
        assert rows[box][0] == label
        np.testing.assert_array_equal(rows[box][1], deltas)
    assert np.isfinite(ours.boxes).all() and np.isfinite(ours.deltas).all()
    assert not np.any(ours.boxes[6:])


def test_roi_targets_pass_over_crowds():
    crowd = jnp.array([True, False])
    ours = roi_targets(KEY, proposals(ROIS), GT, CLASSES, BOTH, crowd, num_samples=16)
    labels = {box: label for box, (label, _) in by_box(ours).items()}
    assert labels == {(22, 20, 40, 40): 2, (60, 60, 70, 70): 0, (20, 20, 40, 40): 2}


def test_roi_targets_do_not_append_crowds():
    # The crowd's own box would be an object: it overlaps one by 0.9.
    gt = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    crowd, far = jnp.array([True, False]), proposals(ROIS[3:])
    ours = roi_targets(KEY, far, gt, CLASSES, BOTH, crowd, num_samples=16)
    labels = {box: label for box, (label, _) in by_box(ours).items()}
    assert labels == {(0, 0, 10, 9): 2, (60, 60, 70, 70): 0}


@pytest.mark.parametrize("slots", [0, 2])
def test_roi_targets_without_objects_are_background(slots):
    ours = roi_targets(
        KEY,
        proposals(ROIS),
        jnp.full((slots, 4), jnp.nan),
        jnp.full(slots, 99),
        jnp.zeros(slots, bool),
        num_samples=8,
    )
    assert ours.labels.tolist() == [0] * 4 + [-1] * 4
    assert by_box(ours).keys() == {tuple(box) for box in ROIS}
    assert not np.any(ours.deltas)


def test_roi_targets_with_nothing_at_all():
    none = jnp.zeros(4, bool)
    ours = roi_targets(KEY, proposals(ROIS, none), GT, CLASSES, none[:2], num_samples=8)
    assert (ours.labels == -1).all()
    assert not np.any(ours.boxes) and not np.any(ours.deltas)


def test_roi_targets_stop_the_gradient():
    def total(rois):
        return roi_targets(KEY, rois, GT, CLASSES, BOTH, num_samples=16).boxes.sum()

    rois = proposals(ROIS)
    gradient = jax.grad(lambda boxes: total(rois._replace(boxes=boxes)))(rois.boxes)
    assert not np.any(gradient)


def test_roi_targets_in_a_batch_are_those_of_each_image():
    rois = jax.tree.map(lambda *v: jnp.stack(v), proposals(ROIS), proposals(ROIS[::-1]))
    gt, classes = jnp.stack([GT, GT + 1]), jnp.stack([CLASSES, CLASSES + 1])
    valid, keys = jnp.array([[True, True], [True, False]]), jax.random.split(KEY)
    function = functools.partial(roi_targets, num_samples=5)
    ours = jax.jit(jax.vmap(function))(keys, rois, gt, classes, valid)
    for i in range(2):
        one = jax.tree.map(lambda v: v[i], rois)  # noqa: B023
        alone = function(keys[i], one, gt[i], classes[i], valid[i])
        np.testing.assert_array_equal(ours.boxes[i], alone.boxes)
        np.testing.assert_array_equal(ours.labels[i], alone.labels)
        np.testing.assert_allclose(ours.deltas[i], alone.deltas, rtol=1e-4, atol=1e-6)


def test_targets_agree_with_matching(rng):
    """The RPN's labels are those of `match` where all are drawn."""
    gt, _, valid = objects(rng)
    rules = dict(fg_iou=0.6, bg_iou=0.4, force_best=False)
    ours = rpn_targets(KEY, ANCHORS, gt, valid, **EVERY, **rules)
    np.testing.assert_array_equal(
        ours.labels, matching.match(ANCHORS, gt, valid, **rules).labels
    )
