"""Matching against a slow loop over boxes on whole pixels, where IoUs are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.evaluation.recall import covered
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching

RPN = dict(fg_iou=0.7, bg_iou=0.3, force_best=True)
ROI = dict(fg_iou=0.5, bg_iou=0.5, force_best=False)


def whole_boxes(rng, n, size=24):
    corner, side = rng.integers(0, size, (n, 2)), rng.integers(1, size, (n, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def slow_overlap(a, b):
    w, h = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    both = np.float32(w * h)
    union = area_a + area_b - both
    return (both / union if union else 0.0), (both / area_a if area_a else 0.0)


def slow_match(
    boxes,
    gt_boxes,
    gt_valid,
    gt_ignore=None,
    *,
    fg_iou,
    bg_iou,
    force_best,
    bg_lo=0.0,
    ignore_ioa=0.5,
    valid=None,
):
    n, g = len(boxes), len(gt_boxes)
    gt_ignore = np.zeros(g, bool) if gt_ignore is None else gt_ignore
    rows = range(n) if valid is None else [i for i in range(n) if valid[i]]
    objects = [j for j in range(g) if gt_valid[j] and not gt_ignore[j]]
    crowds = [j for j in range(g) if gt_valid[j] and gt_ignore[j]]
    overlap = {
        (i, j): slow_overlap(boxes[i], gt_boxes[j])
        for i in rows
        for j in objects + crowds
    }
    index, iou, labels = np.zeros(n, int), np.zeros(n, np.float32), np.full(n, -1)
    for i in rows:
        for j in objects:
            if overlap[i, j][0] > iou[i]:
                index[i], iou[i] = j, overlap[i, j][0]
        if iou[i] >= fg_iou and iou[i] > 0:
            labels[i] = 1
        elif any(overlap[i, j][1] >= ignore_ioa for j in crowds):
            labels[i] = -1
        elif bg_lo <= iou[i] < bg_iou:
            labels[i] = 0
    for j in objects if force_best else []:
        top = max((overlap[i, j][0] for i in rows), default=0)
        for i in rows:
            if overlap[i, j][0] == top > 0:
                labels[i] = 1
    return index, iou, labels


def scene(rng, n=60, g=8, slots=11):
    boxes, gt_boxes = whole_boxes(rng, n), whole_boxes(rng, slots)
    boxes[:4] = gt_boxes[:4]  # perfect, twice: ties at 1
    boxes[4:6] = gt_boxes[2:4]
    gt_boxes[3] = gt_boxes[1]  # one object twice
    gt_valid = np.arange(slots) < g
    gt_ignore = rng.random(slots) < 0.3
    return boxes, gt_boxes, gt_valid, gt_ignore, rng.random(n) < 0.8


match = jax.jit(
    matching.match,
    static_argnames=("fg_iou", "bg_iou", "bg_lo", "force_best", "ignore_ioa"),
)


def assert_same(ours, expected):
    for name, one, other in zip(
        ("index", "iou", "labels"), ours, expected, strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("rules", [RPN, ROI, dict(ROI, bg_lo=0.1), dict(RPN, fg_iou=1)])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("some", [False, True])
def test_match_is_the_slow_one(rng, rules, ignore, some):
    found = 0
    for _ in range(5):
        boxes, gt_boxes, gt_valid, gt_ignore, valid = scene(rng)
        args = boxes, gt_boxes, gt_valid, gt_ignore if ignore else None
        valid = valid if some else None
        expected = slow_match(*args, **rules, valid=valid)
        args = [None if a is None else jnp.asarray(a) for a in args]
        valid = None if valid is None else jnp.asarray(valid)
        assert_same(match(*args, **rules, valid=valid), expected)
        found += len(set(expected[2]))
    assert found >= 10  # at least two of the three labels each time


def test_match_by_hand():
    boxes = jnp.array(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 8],
            [0, 0, 10, 5],
            [0, 0, 10, 2],
            [50, 50, 60, 60],
        ]
    )
    ours = match(boxes, boxes[:1], jnp.array([True]), **dict(RPN, force_best=False))
    np.testing.assert_allclose(ours.iou, [1, 0.8, 0.5, 0.2, 0], rtol=1e-6)
    assert ours.labels.tolist() == [1, 1, -1, 0, 0]


def test_match_makes_every_tie_for_an_objects_best_an_object():
    # An object in the middle of four equal boxes, each with IoU 4 / 60.
    boxes = jnp.array(
        [[0.0, 0, 6, 6], [4, 0, 10, 6], [0, 4, 6, 10], [4, 4, 10, 10], [20, 20, 26, 26]]
    )
    gt = jnp.array([[4.0, 4.0, 6.0, 6.0]])
    assert match(boxes, gt, jnp.array([True]), **RPN).labels.tolist() == [1, 1, 1, 1, 0]
    rules = dict(RPN, force_best=False)
    assert match(boxes, gt, jnp.array([True]), **rules).labels.tolist() == [0] * 5


def test_match_never_forces_boxes_that_do_not_touch():
    boxes, gt = jnp.array([[0.0, 0, 4, 4]]), jnp.array([[4.0, 0, 8, 4]])
    for rules in (RPN, dict(RPN, fg_iou=0, bg_iou=0.1)):
        assert match(boxes, gt, jnp.array([True]), **rules).labels.tolist() == [0]


def test_match_leaves_out_invalid_rows_before_the_best_is_sought():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4]])
    gt, one = boxes[:1], jnp.array([True])
    assert match(boxes, gt, one, **RPN).labels.tolist() == [1, -1, -1]
    valid = jnp.array([False, True, True])
    assert match(boxes, gt, one, **RPN, valid=valid).labels.tolist() == [-1, 1, -1]
    with_nan = boxes.at[0].set(jnp.nan)
    assert_same(
        match(with_nan, gt, one, **RPN, valid=valid),
        match(boxes, gt, one, **RPN, valid=valid),
    )


def test_match_ignores_boxes_inside_a_crowd():
    crowd = [0.0, 0, 40, 40]
    boxes = jnp.array(
        [
            [0.0, 0, 8, 8],  # inside the crowd
            [38, 0, 42, 8],  # half inside: at the threshold
            [39, 0, 43, 8],  # a quarter inside
            [10, 10, 20, 20],  # inside, but an object
            [0, 0, 40, 40],  # the crowd itself
        ]
    )
    gt_boxes, valid = jnp.array([crowd, [10.0, 10, 20, 20]]), jnp.ones(2, bool)
    ignore = jnp.array([True, False])
    ours = match(boxes, gt_boxes, valid, ignore, **RPN)
    assert ours.labels.tolist() == [-1, -1, 0, 1, -1]
    assert ours.gt_index[3] == 1
    # a crowd in a padded slot is no crowd
    ours = match(boxes, gt_boxes, jnp.array([False, True]), ignore, **RPN)
    assert ours.labels.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("rules", [RPN, ROI])
def test_match_does_not_see_padding(rng, rules):
    boxes, gt_boxes, gt_valid, gt_ignore, valid = map(jnp.asarray, scene(rng, g=8))
    short = match(
        boxes, gt_boxes[:8], gt_valid[:8], gt_ignore[:8], **rules, valid=valid
    )
    for junk in (0.0, 5.0, jnp.nan, jnp.inf):
        padded = jnp.where(gt_valid[:, None], gt_boxes, junk)
        ours = match(boxes, padded, gt_valid, gt_ignore, **rules, valid=valid)
        assert_same(ours, short)


def test_match_takes_objects_in_any_order_and_place(rng):
    boxes, gt_boxes, gt_valid, gt_ignore, valid = scene(rng)
    order = rng.permutation(len(gt_boxes))
    args = (gt_boxes, gt_valid, gt_ignore)
    ours = match(boxes, *(jnp.asarray(a) for a in args), **RPN)
    other = match(boxes, *(jnp.asarray(a[order]) for a in args), **RPN)
    np.testing.assert_array_equal(other.iou, ours.iou)
    np.testing.assert_array_equal(other.labels, ours.labels)
    hit = np.asarray(ours.iou) > 0
    chosen, again = gt_boxes[ours.gt_index], gt_boxes[order[other.gt_index]]
    same = [slow_overlap(*pair)[0] for pair in zip(boxes[hit], again[hit], strict=True)]
    np.testing.assert_array_equal(same, ours.iou[hit])
    assert (chosen[hit] == again[hit]).all(axis=1).mean() > 0.8  # but for ties


@pytest.mark.parametrize("slots", [0, 1, 5])
def test_match_without_objects(slots):
    boxes = jnp.array([[0.0, 0, 4, 4], [2, 2, 9, 9], [0, 0, 0, 0]])
    gt_boxes, none = jnp.full((slots, 4), jnp.nan), jnp.zeros(slots, bool)
    ours = match(boxes, gt_boxes, none, none, **RPN)
    assert ours.labels.tolist() == [0, 0, 0] and ours.iou.tolist() == [0, 0, 0]


def test_match_in_a_batch_is_match_in_a_loop(rng):
    scenes = [scene(rng, g=g) for g in (0, 3, 11)]
    batch = [jnp.asarray(np.stack(column)) for column in zip(*scenes, strict=True)]

    def one(boxes, gt_boxes, gt_valid, gt_ignore, valid):
        return matching.match(boxes, gt_boxes, gt_valid, gt_ignore, **RPN, valid=valid)

    ours = jax.jit(jax.vmap(one))(*batch)
    for i, single in enumerate(scenes):
        alone = jax.jit(one)(*map(jnp.asarray, single))
        assert_same([column[i] for column in ours], alone)


def test_match_lets_no_gradient_through(rng):
    boxes, gt_boxes, gt_valid, _, _ = map(jnp.asarray, scene(rng))
    gradient = jax.jit(
        jax.grad(lambda boxes, gt: match(boxes, gt, gt_valid, **RPN).iou.sum(), (0, 1))
    )(boxes, gt_boxes)
    assert not np.any(gradient[0]) and not np.any(gradient[1])


def test_match_does_not_keep_the_matrix_of_overlaps():
    n, g = 50_000, 100
    compiled = match.lower(
        jax.ShapeDtypeStruct((n, 4), jnp.float32),
        jax.ShapeDtypeStruct((g, 4), jnp.float32),
        jax.ShapeDtypeStruct((g,), bool),
        jax.ShapeDtypeStruct((g,), bool),
        **RPN,
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * g / 5


# -- Sampling --------------------------------------------------------------------------


sample = jax.jit(matching.sample, static_argnames=("num_samples", "fg_fraction"))


@functools.partial(jax.jit, static_argnames=("num_samples", "fg_fraction"))
def draws(key, labels, *, num_samples, fg_fraction):
    draw = functools.partial(sample, num_samples=num_samples, fg_fraction=fg_fraction)
    return jax.vmap(draw, (0, None))(jax.random.split(key, 1000), labels)


def make_labels(rng, fg, bg, ignored):
    labels = np.repeat([3, 0, -1], [fg, bg, ignored])
    labels[:fg] = rng.integers(1, 9, fg)
    return rng.permutation(labels)


@pytest.mark.parametrize(
    "fg, bg, ignored, num_samples, fraction, expected",
    [
        (50, 100, 20, 16, 0.5, (8, 8)),  # plenty
        (3, 100, 20, 16, 0.5, (3, 13)),  # padded with background
        (50, 5, 20, 16, 0.5, (8, 5)),  # never more objects than asked
        (0, 100, 20, 16, 0.5, (0, 16)),
        (50, 0, 20, 16, 0.25, (4, 0)),
        (0, 0, 20, 16, 0.5, (0, 0)),
        (5, 6, 2, 32, 0.5, (5, 6)),  # fewer rows than slots
        (50, 100, 20, 15, 0.5, (7, 8)),  # rounded down
        (50, 100, 20, 16, 1.0, (16, 0)),
        (50, 100, 20, 16, 0.0, (0, 16)),
    ],
)
def test_sample_fills_its_quotas(rng, fg, bg, ignored, num_samples, fraction, expected):
    labels = make_labels(rng, fg, bg, ignored)
    for seed in range(3):
        indices, valid = sample(
            jax.random.key(seed),
            jnp.asarray(labels),
            num_samples=num_samples,
            fg_fraction=fraction,
        )
        assert indices.shape == valid.shape == (num_samples,)
        drawn = np.asarray(indices)[np.asarray(valid)]
        assert len(set(drawn)) == len(drawn) == sum(expected)
        assert (labels[drawn[: expected[0]]] >= 1).all()  # objects first
        assert (labels[drawn[expected[0] :]] == 0).all()
        assert not np.any(indices[sum(expected) :]) and not valid[sum(expected) :].any()


def test_sample_is_uniform(rng):
    labels = make_labels(rng, 10, 20, 5)
    indices, valid = draws(
        jax.random.key(0), jnp.asarray(labels), num_samples=8, fg_fraction=0.5
    )
    assert valid.all()
    counts = np.bincount(np.asarray(indices).ravel(), minlength=len(labels)) / 1000
    # binomial: standard deviations 0.0155 (p = 0.4) and 0.0126 (p = 0.2)
    np.testing.assert_allclose(counts[labels >= 1], 0.4, atol=5 * 0.0155)
    np.testing.assert_allclose(counts[labels == 0], 0.2, atol=5 * 0.0126)
    assert not counts[labels == -1].any()


def test_sample_pairs_are_uniform():
    # Of 4 rows 2 are drawn: each of the 6 pairs in a sixth of the draws.
    indices, _ = draws(
        jax.random.key(1), jnp.zeros(4, int), num_samples=2, fg_fraction=0.5
    )
    pairs = np.sort(np.asarray(indices), axis=1) @ np.array([4, 1])
    counts = np.unique(pairs, return_counts=True)[1]
    assert len(counts) == 6
    np.testing.assert_allclose(counts / 1000, 1 / 6, atol=5 * 0.0118)


def test_sample_is_drawn_by_its_key_alone(rng):
    labels = jnp.asarray(make_labels(rng, 50, 200, 20))
    rules = dict(num_samples=32, fg_fraction=0.5)
    first, valid = matching.sample(jax.random.key(0), labels, **rules)
    again, _ = jax.jit(functools.partial(matching.sample, **rules))(
        jax.random.key(0), labels
    )
    other, _ = matching.sample(jax.random.key(1), labels, **rules)
    np.testing.assert_array_equal(first, again)
    assert valid.all() and not np.array_equal(np.sort(first), np.sort(other))


@pytest.mark.parametrize(("n", "g"), [(60, 9), (30, 1), (1, 4), (0, 2)])
def test_the_matrix_gives_what_the_loop_gives(rng, n, g):
    """Ties, slots that are not used, and boxes that overlap nothing.

    No share of an area on whole pixels is so near to 0.487 that rounding decides.
    """
    for share in (0, 0.6, 1):
        boxes, gt_boxes = (jnp.asarray(whole_boxes(rng, k)) for k in (n, g))
        boxes = jnp.concatenate([boxes, boxes[:20], gt_boxes, jnp.zeros((1, 4))])
        used = jnp.asarray(rng.random(g) < share)
        for at_once, in_turn in (
            (matching._best_at_once, matching._best_in_turn),
            (matching._covered_at_once, matching._covered_in_turn),
        ):
            more = {} if at_once is matching._best_at_once else dict(ignore_ioa=0.487)
            found, expected = (
                jax.tree.leaves(f(boxes, gt_boxes, used, **more))
                for f in (at_once, in_turn)
            )
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize("share", [(0.3, 0.3), (0, 0.5), (0.5, 0), (0, 0), (1, 0)])
def test_one_sort_draws_what_two_searches_draw(rng, share):
    """Equal priorities too, of which the first row comes first."""
    for n in (1, 7, 60):
        of = rng.random(n)
        labels = np.where(of < share[0], 3, np.where(of > 1 - share[1], 0, -1))
        priority = np.float32(rng.integers(0, 9, n) / 9)
        counts = dict(max_fg=min(8, n), max_bg=min(16, n))
        (rows, drawn), (expected, which) = (
            f(jnp.asarray(labels), jnp.asarray(priority), **counts)
            for f in (matching._drawn_by_one_sort, matching._drawn_by_class)
        )
        np.testing.assert_array_equal(drawn, which)
        np.testing.assert_array_equal(rows[drawn], expected[which])
        assert rows.dtype == expected.dtype and drawn.sum() == min(
            counts["max_fg"], (labels > 0).sum()
        ) + min(counts["max_bg"], (labels == 0).sum())


def test_overlaps_of_whole_pixels_are_exact(rng):
    """What the comparisons above stand on."""
    a, b = whole_boxes(rng, 20), whole_boxes(rng, 9)
    expected = [[slow_overlap(one, other)[0] for other in b] for one in a]
    np.testing.assert_array_equal(box_ops.iou(jnp.asarray(a), jnp.asarray(b)), expected)


def test_cover_equals_the_metric_on_the_host(rng):
    """`evaluation.recall.covered`, greedy pairs in NumPy; padding takes no part."""
    for g, p in ((5, 12), (7, 3), (1, 1), (4, 0)):
        start = rng.uniform(0, 20, (g + p, 2))
        boxes = np.concatenate([start, start + rng.uniform(3, 20, (g + p, 2))], 1)
        gt, proposals = boxes[:g], boxes[g:]
        padded = np.concatenate([gt, np.full((2, 4), np.nan)])
        valid = np.arange(g + 2) < g
        iou = box_ops.iou(jnp.float32(padded), jnp.float32(proposals))
        found = jax.jit(matching.cover)(iou, valid)
        np.testing.assert_allclose(found[:g], covered(gt, proposals), atol=1e-5)
        assert not found[g:].any()
