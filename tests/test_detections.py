"""Soft-NMS as a post-processing, and NMS by the smaller area, against plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import detections, proposals
from frcnn_jax.ops import nms
from frcnn_jax.training import config as configs
from frcnn_jax.training import rehearsal
from frcnn_jax.training.algorithms import fast_rcnn
from tests.training import small

SIZE = np.array([80, 120])
STDS = (0.1, 0.1, 0.2, 0.2)


def iou(a, b):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return w * h / max(sum(areas) - w * h, 1e-12), w * h / max(min(areas), 1e-12)


def slow_soft(boxes, scores, classes, decay):
    """[(index, score)] of every box: the paper's loop, one class at a time."""
    out = []
    for c in np.unique(classes):
        left = {i: float(scores[i]) for i in np.flatnonzero(classes == c)}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            out.append((best, left.pop(best)))
            for i in left:
                left[i] *= decay(iou(boxes[best], boxes[i])[0])
    return sorted(out, key=lambda pair: -pair[1])


def slow_greedy(boxes, scores, classes, threshold, which):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(iou(boxes[j], boxes[i])[which] <= threshold for j in rivals):
            kept.append(int(i))
    return kept


def crowd(rng, n=60):
    corner = rng.uniform(0, 40, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 40, (n, 2))], 1)
    scores = rng.permutation(np.linspace(0.1, 0.95, n))
    classes = rng.integers(1, 4, n)
    return boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int32)


DECAYS = {
    "gaussian": (nms.soft_nms_indices, dict(sigma=0.4), lambda o: np.exp(-o * o / 0.4)),
    "linear": (
        nms.soft_nms_linear_indices,
        dict(iou_threshold=0.3),
        lambda o: 1 - o if o >= 0.3 else 1.0,
    ),
}


@pytest.mark.parametrize("kind", DECAYS)
def test_soft_nms_is_the_loop_class_by_class(rng, kind):
    function, options, decay = DECAYS[kind]
    boxes, scores, classes = crowd(rng)
    valid = np.arange(60) < 50
    expected = slow_soft(boxes[:50], scores[:50], classes[:50], decay)[:40]
    boxes[50:], scores[50:] = np.nan, np.nan
    run = jax.jit(partial(function, max_output=40, **options))
    index, new, found = run(boxes, scores, valid, classes=classes)
    assert found.all()
    np.testing.assert_allclose(new, [s for _, s in expected], rtol=1e-4)
    assert index.tolist() == [i for i, _ in expected]


def test_of_too_few_boxes_the_rest_is_empty():
    boxes, scores = jnp.array([[0.0, 0, 9, 9]] * 2), jnp.array([0.5, 0.9])
    index, new, found = nms.soft_nms_indices(boxes, scores, max_output=4)
    assert index.tolist() == [1, 0, 0, 0] and found.tolist() == [True] * 2 + [False] * 2
    assert new[2:].tolist() == [0, 0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_nms_by_the_smaller_area_is_the_loop(rng, threshold):
    boxes, scores, classes = crowd(rng)
    expected = slow_greedy(boxes, scores, classes, threshold, 1)
    index, found = nms.smaller_nms_indices(
        boxes, scores, threshold=threshold, max_output=60, classes=classes
    )
    assert index[: int(found.sum())].tolist() == expected
    assert 5 < len(expected) < 60


def test_nms_by_the_smaller_area_keeps_boxes_without_area():
    boxes = jnp.array([[0.0, 0, 9, 9], [3, 3, 3, 3], [3, 3, 3, 3]])
    scores = jnp.array([0.9, 0.8, 0.7])
    _, found = nms.smaller_nms_indices(boxes, scores, threshold=0.5, max_output=3)
    assert found.all()


def inputs(rng, r=30, classes=3):
    corner = rng.uniform(0, 60, (r, 2))
    rois = np.concatenate([corner, corner + rng.uniform(8, 30, (r, 2))], 1)
    logits = rng.normal(0, 2, (r, classes + 1)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (r, classes, 4)).astype(np.float32)
    return rois.astype(np.float32), np.arange(r) < 25, logits, deltas


@pytest.mark.parametrize("name", ["soft_nms", "soft_nms_linear"])
def test_post_processing_is_the_loop_on_the_same_candidates(rng, name):
    """Candidates are those of `postprocess`, whose own test has a loop for them."""
    rois, valid, logits, deltas = inputs(rng)
    found = proposals.class_candidates(rois, valid, logits, deltas, SIZE, score=0.02)
    use = np.asarray(found.usable)
    boxes, scores, classes = (np.asarray(x)[use] for x in found[:3])
    decay = DECAYS["gaussian" if name == "soft_nms" else "linear"][2]
    options = dict(sigma=0.4) if name == "soft_nms" else dict(nms_iou=0.3)
    expected = [p for p in slow_soft(boxes, scores, classes, decay) if p[1] > 0.02][:20]
    got = jax.jit(
        partial(getattr(detections, name), score=0.02, max_detections=20, **options)
    )(rois, valid, logits, deltas, SIZE)
    n = len(expected)
    assert got.valid.tolist() == [True] * n + [False] * (20 - n) and n > 10
    np.testing.assert_allclose(got.scores[:n], [s for _, s in expected], rtol=1e-4)
    rows = [i for i, _ in expected]
    np.testing.assert_allclose(got.boxes[:n], boxes[rows], atol=1e-4)
    assert got.classes[:n].tolist() == classes[rows].tolist()
    rois[25:], logits[25:], deltas[25:] = np.nan, np.nan, np.nan
    again = getattr(detections, name)(
        *(rois, valid, logits, deltas, SIZE), score=0.02, max_detections=20, **options
    )
    small.assert_trees_equal(
        jax.tree.map(jnp.isnan, again.boxes).any(), jnp.bool_(False)
    )
    np.testing.assert_allclose(again.scores, got.scores, rtol=1e-5)


def test_one_flag_brings_it(rng):
    c = small.config()
    configs.change(c, ["postprocess.name=soft_nms", "postprocess.sigma=0.4"])
    c = configs.check(c)
    rehearsal.looks(c)["postprocess"]()
    rois, valid, logits, deltas = map(jnp.asarray, inputs(rng))
    args = rois, valid, logits, deltas, jnp.asarray(SIZE)
    named = fast_rcnn.postprocess_of(c)(*args)
    group = {k: v for k, v in c["postprocess"].items() if k != "name"}
    small.assert_trees_equal(named, detections.soft_nms(*args, **group))
    c["postprocess"]["sigmma"] = 1.0
    with pytest.raises(TypeError, match="unexpected.*sigmma"):
        rehearsal.looks(c)["postprocess"]()
