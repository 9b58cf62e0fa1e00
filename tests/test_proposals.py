"""Proposal selection and post-processing against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import proposals

select_proposals = jax.jit(
    proposals.select_proposals,
    static_argnames=(
        *("level_sizes", "pre_nms", "post_nms", "nms_iou", "min_size", "score", "stds"),
        "exclude_padding",
    ),
)
postprocess = jax.jit(
    proposals.postprocess,
    static_argnames=(
        *("score", "nms_iou", "max_detections", "stds", "pre_nms", "min_size"),
    ),
)

SIZES = (90, 30, 10)  # anchors of each level
IMAGE = jnp.array([80, 120])  # (h, w) before padding


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return inter / (sum(areas) - inter)


def decode_and_clip(deltas, anchor, stds):
    """Faster R-CNN eq. (2) backwards, one box, into the image."""
    tx, ty, tw, th = deltas * np.asarray(stds)
    wa, ha = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + wa / 2 + tx * wa, anchor[1] + ha / 2 + ty * ha
    limit = np.log(1000 / 16)
    w, h = wa * np.exp(min(tw, limit)), ha * np.exp(min(th, limit))
    box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return box.clip(0, [120, 80, 120, 80])


def greedy(candidates, threshold):
    """Keep (score, box, group) by falling score; a kept one removes in its group."""
    kept = []
    for score, box, group in sorted(candidates, key=lambda c: -c[0]):
        if all(g != group or iou(box, b) <= threshold for _, b, g in kept):
            kept.append((score, box, group))
    return kept


def select_loop(anchors, logits, deltas, pre_nms, nms_iou, min_size, stds, padding):
    if logits.ndim == 2:
        logits = logits[:, 1] - logits[:, 0]
    candidates, start = [], 0
    for level, size in enumerate(SIZES):
        x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
        inside = (x >= 0) & (x <= 120) & (y >= 0) & (y <= 80)
        usable = np.flatnonzero(inside | padding)
        usable = usable[(usable >= start) & (usable < start + size)]
        start += size
        for i in usable[np.argsort(-logits[usable], kind="stable")][:pre_nms]:
            box = decode_and_clip(deltas[i], anchors[i], stds)
            if (box[2:] - box[:2] >= min_size).all():
                candidates.append((logits[i], box, level))
    return greedy(candidates, nms_iou)


def postprocess_loop(rois, logits, deltas, score, nms_iou, stds, min_size):
    candidates = []
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probability = exp / exp.sum(1, keepdims=True)
    for r, roi in enumerate(rois):
        for c in range(1, logits.shape[1]):
            if probability[r, c] > score:
                row = c - 1 if deltas.shape[1] > 1 else 0
                box = decode_and_clip(deltas[r, row], roi, stds)
                if (box[2:] - box[:2] >= min_size).all():
                    candidates.append((probability[r, c], box, c))
    return greedy(candidates, nms_iou)


def some_boxes(rng, n):
    """Boxes of many sizes, with centres up to a third of the image outside of it."""
    centre = rng.uniform(-0.1, 1.3, (n, 2)) * (120, 80)
    half = np.exp(rng.normal(3, 0.5, (n, 2))) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def rpn_output(rng, softmax=False):
    n = sum(SIZES)
    anchors = some_boxes(rng, n)
    logits = rng.normal(0, 2, (n, 2) if softmax else n).astype(np.float32)
    deltas = rng.normal(0, 0.3, (n, 4)).astype(np.float32)
    return anchors, logits, deltas


def assert_same_boxes(got, kept, n):
    """The valid slots are the first of `kept`; the others hold zeros."""
    kept = kept[:n]
    assert got.valid.tolist() == [True] * len(kept) + [False] * (n - len(kept))
    expected = np.array([box for _, box, _ in kept])
    np.testing.assert_allclose(got.boxes[: len(kept)], expected, atol=1e-3)
    assert not got.boxes[len(kept) :].any() and not got.scores[len(kept) :].any()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_select_proposals_equals_the_loop(rng, softmax, padding):
    anchors, logits, deltas = rpn_output(rng, softmax)
    stds = (0.5, 0.5, 1.0, 2.0)
    kept = select_loop(anchors, logits, deltas, 25, 0.5, 8.0, stds, padding)
    for post_nms in (20, 100):
        got = select_proposals(
            *map(jnp.asarray, (anchors, logits, deltas)),
            IMAGE,
            level_sizes=SIZES,
            pre_nms=25,
            post_nms=post_nms,
            nms_iou=0.5,
            min_size=8.0,
            stds=stds,
            exclude_padding=not padding,
        )
        assert 20 < len(kept) < 65
        assert_same_boxes(got, kept, post_nms)
        scores = [1 / (1 + np.exp(-score)) for score, _, _ in kept[:post_nms]]
        np.testing.assert_allclose(got.scores[: len(scores)], scores, rtol=1e-5)


def test_levels_do_not_suppress_each_other():
    anchors = jnp.array([[10.0, 10, 50, 50]] * 4)
    logits, deltas = jnp.array([1.0, 4, 2, 3]), jnp.zeros((4, 4))
    call = functools.partial(select_proposals, anchors, logits, deltas, IMAGE)
    one = call(post_nms=4)
    assert one.valid.tolist() == [True, False, False, False]
    two = call(post_nms=4, level_sizes=(2, 2))
    assert two.valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(two.scores[:2], jax.nn.sigmoid(jnp.array([4.0, 3])))


def test_anchors_in_the_padding_take_no_slot():
    """Two better anchors lie in the padding; with pre_nms = 1 the third is found."""
    anchors = jnp.array([[120.0, 0, 140, 20], [0, 79, 40, 99], [0, 0, 20, 20]])
    logits, deltas = jnp.array([9.0, 8, -9]), jnp.zeros((3, 4))
    got = select_proposals(anchors, logits, deltas, IMAGE, pre_nms=1, post_nms=2)
    assert got.valid.tolist() == [True, False]
    assert got.boxes[0].tolist() == [0, 0, 20, 20]
    everything = select_proposals(
        anchors, logits, deltas, IMAGE, pre_nms=2, post_nms=2, exclude_padding=False
    )
    # The best has nothing left after clipping; the second keeps a strip of one pixel.
    assert everything.boxes.tolist() == [[0, 79, 40, 80], [0, 0, 0, 0]]


def test_no_proposal_at_all():
    anchors = jnp.array([[200.0, 200, 220, 220]] * 3)
    got = select_proposals(anchors, jnp.ones(3), jnp.zeros((3, 4)), IMAGE, post_nms=5)
    assert not got.valid.any() and not got.boxes.any() and not got.scores.any()


def test_wrong_level_sizes_are_refused():
    with pytest.raises(ValueError, match=r"level_sizes are \(2, 2\), expected .* 3"):
        select_proposals(
            jnp.ones((3, 4)), jnp.ones(3), jnp.ones((3, 4)), IMAGE, level_sizes=(2, 2)
        )


def test_select_proposals_under_vmap_is_a_loop(rng):
    anchors = jnp.asarray(some_boxes(rng, sum(SIZES)))
    logits = jnp.asarray(rng.normal(0, 2, (3, sum(SIZES))), jnp.float32)
    deltas = jnp.asarray(rng.normal(0, 0.3, (3, sum(SIZES), 4)), jnp.float32)
    sizes = jnp.array([[80, 120], [40, 120], [5, 5]])
    select = functools.partial(select_proposals, level_sizes=SIZES, post_nms=40)
    mapped = jax.jit(jax.vmap(select, (None, 0, 0, 0)))(anchors, logits, deltas, sizes)
    for i in range(3):
        one = select(anchors, logits[i], deltas[i], sizes[i])
        np.testing.assert_array_equal(mapped.valid[i], one.valid)
        np.testing.assert_allclose(mapped.boxes[i], one.boxes, atol=1e-4)
        np.testing.assert_allclose(mapped.scores[i], one.scores, rtol=1e-6)


def test_proposals_carry_no_gradient(rng):
    anchors, logits, deltas = map(jnp.asarray, rpn_output(rng))

    def total(logits, deltas):
        got = select_proposals(anchors, logits, deltas, IMAGE, post_nms=10)
        return got.boxes.sum() + got.scores.sum()

    for grad in jax.grad(total, (0, 1))(logits, deltas):
        assert not grad.any()


def detector_output(rng, rows=3, n=30):
    rois = some_boxes(rng, n)
    logits = rng.normal(0, 2, (n, 4)).astype(np.float32)
    deltas = rng.normal(0, 2, (n, rows, 4)).astype(np.float32)
    return rois, logits, deltas


@pytest.mark.parametrize("rows", [3, 1])
def test_postprocess_equals_the_loop(rng, rows):
    rois, logits, deltas = detector_output(rng, rows)
    stds = (0.1, 0.1, 0.2, 0.2)
    kept = postprocess_loop(rois, logits, deltas, 0.1, 0.3, stds, 12.0)
    assert 10 < len(kept) < 60
    for max_detections in (10, 60):
        got = postprocess(
            jnp.asarray(rois),
            jnp.ones(len(rois), bool),
            jnp.asarray(logits),
            jnp.asarray(deltas),
            IMAGE,
            score=0.1,
            nms_iou=0.3,
            max_detections=max_detections,
            min_size=12.0,
        )
        assert_same_boxes(got, kept, max_detections)
        n = int(got.valid.sum())
        np.testing.assert_allclose(got.scores[:n], [s for s, _, _ in kept[:n]], 1e-5)
        np.testing.assert_array_equal(got.classes[:n], [c for _, _, c in kept[:n]])
        assert not got.classes[n:].any()


def test_scores_of_float64_logits_are_computed_in_float64(rng):
    rois, logits, deltas = detector_output(rng)
    p = np.exp(np.float64(logits))
    p /= p.sum(1, keepdims=True)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, jnp.float64) for x in (rois, logits, deltas))
        rois, logits, deltas = arrays
        got = postprocess(rois, jnp.ones(30, bool), logits, deltas, IMAGE)
    best = np.asarray(got.scores)[0]
    np.testing.assert_allclose(best, p[:, 1:].max(), rtol=1e-13)


def test_postprocess_ignores_padded_rois(rng):
    rois, logits, deltas = detector_output(rng)
    got = postprocess(
        *map(jnp.asarray, (rois, np.ones(30, bool), logits, deltas)), IMAGE
    )
    slots = np.sort(rng.permutation(40)[:30])
    padded = []
    for x in (rois, logits, deltas):
        padded.append(np.full((40, *x.shape[1:]), np.nan, np.float32))
        padded[-1][slots] = x
    valid = np.isin(np.arange(40), slots)
    arrays = padded[0], valid, *padded[1:]
    again = postprocess(*map(jnp.asarray, arrays), IMAGE)
    assert got.valid.sum() > 5
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5), again, got
    )


def test_postprocess_without_rois():
    got = postprocess(
        jnp.zeros((0, 4)),
        jnp.zeros(0, bool),
        jnp.zeros((0, 4)),
        jnp.zeros((0, 3, 4)),
        IMAGE,
        max_detections=5,
    )
    assert got.boxes.shape == (5, 4) and not got.valid.any()


def test_postprocess_score_is_a_strict_bound():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
    rois = jnp.array([[0.0, 0, 20, 20], [40, 40, 60, 60]])
    deltas = jnp.zeros((2, 1, 4))
    valid = jnp.ones(2, bool)
    got = postprocess(rois, valid, logits, deltas, IMAGE, score=0.3)
    assert got.valid.sum() == 1 and got.classes[0] == 1
    np.testing.assert_allclose(got.boxes[0], [40, 40, 60, 60])
    np.testing.assert_allclose(got.scores[0], 0.5, rtol=1e-6)
    two_halves = jnp.zeros((2, 2))
    none = postprocess(rois, valid, two_halves, deltas, IMAGE, score=0.5)
    assert not none.valid.any() and not none.boxes.any()
    both = postprocess(rois, valid, two_halves, deltas, IMAGE, score=0.4999)
    assert both.valid.sum() == 2


def test_too_many_candidates_lose_the_lowest_scored(rng):
    rois, logits, deltas = map(jnp.asarray, detector_output(rng))
    call = functools.partial(
        postprocess, rois, jnp.ones(30, bool), logits, deltas, IMAGE, max_detections=8
    )
    everything, first = call(), call(pre_nms=40)
    np.testing.assert_array_equal(everything.boxes, first.boxes)  # 8 are among the 40
    few = call(pre_nms=4)
    n = int(few.valid.sum())
    assert 1 <= n <= 4
    np.testing.assert_array_equal(few.boxes[:n], everything.boxes[:n])


def test_postprocess_under_vmap_is_a_loop(rng):
    images = [detector_output(rng) for _ in range(3)]
    rois, logits, deltas = (jnp.asarray(np.stack(x)) for x in zip(*images, strict=True))
    valid = jnp.asarray(rng.random((3, 30)) < 0.8)
    sizes = jnp.array([[80, 120], [40, 120], [1, 1]])
    mapped = jax.jit(jax.vmap(postprocess))(rois, valid, logits, deltas, sizes)
    for i in range(3):
        one = postprocess(rois[i], valid[i], logits[i], deltas[i], sizes[i])
        np.testing.assert_array_equal(mapped.valid[i], one.valid)
        np.testing.assert_array_equal(mapped.classes[i], one.classes)
        np.testing.assert_allclose(mapped.boxes[i], one.boxes, atol=1e-4)


def test_proposals_below_the_least_score_are_dropped():
    anchors = jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    logits = jnp.array([1.0, 0.0, -1.0])
    found = select_proposals(anchors, logits, jnp.zeros((3, 4)), IMAGE, score=0.5)
    assert found.valid.sum() == 2  # sigmoid(0) = 0.5 is not below
    np.testing.assert_array_equal(found.boxes[:2], anchors[:2])


def scene(rng, name, n):
    """Boxes that all overlap or that never do."""
    if name == "all":
        return np.array([20, 20, 80, 60]) + rng.uniform(-0.5, 0.5, (n, 4))
    y, x = 8 * np.stack(np.divmod(rng.permutation(n), 15))
    return np.stack([x, y, x + 6, y + 6], 1)


@pytest.mark.parametrize("boxes", ["all", "none"])
@pytest.mark.parametrize("scores", ["equal", "different"])
def test_worst_cases_of_proposals_equal_the_loop(rng, boxes, scores):
    n = sum(SIZES)
    anchors = scene(rng, boxes, n).astype(np.float32)
    logits = rng.permutation(n) / 10 if scores == "different" else np.ones(n)
    logits, deltas = logits.astype(np.float32), np.zeros((n, 4), np.float32)
    kept = select_loop(anchors, logits, deltas, 70, 0.7, 1.0, (1.0,) * 4, True)
    got = select_proposals(
        *map(jnp.asarray, (anchors, logits, deltas)),
        IMAGE,
        level_sizes=SIZES,
        **dict(pre_nms=70, post_nms=110, min_size=1.0),
    )
    # One a level, or every one (70 + 30 + 10).
    assert len(kept) == (3 if boxes == "all" else 110)
    assert_same_boxes(got, kept, 110)


@pytest.mark.parametrize("boxes", ["all", "none"])
@pytest.mark.parametrize("scores", ["equal", "different"])
def test_worst_cases_of_many_classes_equal_the_loop(rng, boxes, scores):
    """Every pair of 40 RoIs and 50 classes is a candidate, more than are wanted."""
    rois = scene(rng, boxes, 40).astype(np.float32)
    logits = np.zeros((40, 51)) if scores == "equal" else rng.normal(0, 0.5, (40, 51))
    logits, deltas = logits.astype(np.float32), np.zeros((40, 1, 4), np.float32)
    kept = postprocess_loop(rois, logits, deltas, 1e-3, 0.5, (0.1,) * 4, 1.0)
    assert len(kept) == (50 if boxes == "all" else 2000)
    got = postprocess(
        *(jnp.asarray(rois), jnp.ones(40, bool), jnp.asarray(logits)),
        *(jnp.asarray(deltas), IMAGE),
        **dict(score=1e-3, max_detections=300, stds=(0.1,) * 4),
    )
    assert_same_boxes(got, kept, 300)
    n = min(len(kept), 300)
    np.testing.assert_array_equal(got.classes[:n], [c for _, _, c in kept[:n]])


def test_boxes_without_area_are_dropped_after_the_best_are_chosen():
    """As Detectron2: one takes part in NMS and in the count, and is dropped at last."""
    rois = jnp.array([[0.0, 0, 10, 10], [-30, 0, -20, 10], [30, 30, 40, 40]])
    logits = jnp.array([[0.0, 3], [0, 4], [0, 2]])
    given = (rois, jnp.ones(3, bool), logits, jnp.zeros((3, 1, 4)), jnp.array([50, 50]))
    found = proposals.postprocess(*given, max_detections=2, min_size=0.0)
    assert found.valid.tolist() == [True, False]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 0, 0]]
    assert found.classes.tolist() == [1, 0] and float(found.scores[1]) == 0
    both = proposals.postprocess(*given, max_detections=2)  # dropped before the choice
    assert both.valid.tolist() == [True, True]
    assert both.boxes[1].tolist() == [30, 30, 40, 40]
