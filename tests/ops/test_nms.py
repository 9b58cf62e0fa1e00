"""NMS against a loop over boxes in NumPy, float32 in the same order of operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.ops import nms, primitive

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def some(values, *quick):
    """Parameters, all but `quick` for the slow suite: each compiles a program."""
    slow = pytest.mark.slow
    return [pytest.param(v, marks=[] if v in quick else slow) for v in values]


def iou_with(box, boxes):
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1) * (y2 - y1)
    zero = np.float32(0)
    w = np.maximum(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), zero)
    h = np.maximum(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), zero)
    inter = w * h
    with np.errstate(invalid="ignore"):
        return inter / ((box[2] - box[0]) * (box[3] - box[1]) + area - inter)


def greedy(boxes, scores, threshold, classes=None):
    """Indices of the kept by falling score: the textbook loop, compared in float64."""
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left.pop(0)
        kept.append(best)
        overlap = iou_with(boxes[best], boxes).astype(np.float64)
        if classes is not None:
            overlap = np.where(classes == classes[best], overlap, 0)
        left = [i for i in left if not overlap[i] > threshold]
    return np.array(kept, int)


def mask(indices, n):
    keep = np.zeros(n, bool)
    keep[indices] = True
    return keep


def crowd(rng, n, objects=6):
    """Boxes around a few objects; scores of two decimals, so many of them tie."""
    centre = rng.uniform(0, 100, (objects, 2))[rng.integers(0, objects, n)]
    centre = centre + rng.normal(0, 2, (n, 2))
    half = np.exp(rng.normal(3, 0.15, (n, 2))) / 2
    boxes = np.concatenate([centre - half, centre + half], 1).astype(np.float32)
    return boxes, rng.uniform(size=n).round(2).astype(np.float32)


def test_nms_by_hand():
    boxes = jnp.array(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [50, 50, 60, 60]]
    )
    scores = jnp.array([0.9, 0.8, 0.7, 0.1])
    # IoU: 0-1 0.8, 0-2 0.6, 1-2 0.75. At 0.7 box 0 removes 1, which then spares 2.
    assert nms.nms(boxes, scores, iou_threshold=0.7).tolist() == [1, 0, 1, 1]
    assert nms.nms(boxes, scores, iou_threshold=0.5).tolist() == [1, 0, 0, 1]
    assert nms.nms(boxes, scores, iou_threshold=0.85).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("threshold", some(THRESHOLDS, 0.1, 0.5, 0.7))
def test_nms_equals_the_loop_at_every_threshold(rng, threshold):
    for n in (150, 300):
        boxes, scores = crowd(rng, n)
        keep = nms.nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=threshold)
        kept = greedy(boxes, scores, threshold)
        assert 1 < len(kept) < n
        np.testing.assert_array_equal(keep, mask(kept, n))


TILES = ((1, 9), (7, 63), (64, 63), (64, 64), (64, 65), (64, 128), (64, 130))
TILES += ((2048, 130),)


@pytest.mark.parametrize("sizes", some(TILES, (7, 63), (64, 65), (2048, 130)), ids=str)
def test_tile_size_does_not_matter(rng, monkeypatch, sizes):
    tile, n = sizes
    monkeypatch.setattr(nms, "CPU_TILE", tile)
    anew = primitive.Operation("nms", nms._sorted_greedy)  # nothing compiled yet
    monkeypatch.setattr(nms, "_first_kept", anew)
    boxes, scores = crowd(rng, n)
    keep = nms.nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=0.3)
    np.testing.assert_array_equal(keep, mask(greedy(boxes, scores, 0.3), n))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("n, large", [(3000, 3000), (20_000, 2048)])
def test_tile_is_that_of_the_platform_that_runs_it(mapped, n, large):
    """Three exports made on a CPU, and one for all: the matrix of a tile is in them."""

    def keep(boxes, scores):
        return nms.nms_indices(boxes, scores, iou_threshold=0.5, max_output=500)

    shapes = (n, 4), (n,)
    if mapped:
        keep, shapes = jax.vmap(keep), [(2, *shape) for shape in shapes]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    images = 2 if mapped else 1

    def tiles(*platforms):
        exported = jax.export.export(jax.jit(keep), platforms=platforms)(*arrays)
        text = exported.mlir_module()
        sides = 64, 2048, 3000
        return {t for t in sides if f"tensor<{images}x{t}x{t}xi1>" in text}

    assert tiles("cpu") == {64}
    assert tiles("tpu") == {2048}
    assert tiles("cuda") == tiles("rocm") == {large}
    assert tiles("cpu", "cuda", "tpu") == {64, 2048, large}


def test_boxes_at_once_are_one_loop():
    """A trip of a loop goes to the host on a GPU: there is one loop and no other."""
    keep = functools.partial(nms.nms_indices, iou_threshold=0.5, max_output=500)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3000, 4), (3000,))]

    def loops(platform):
        exported = jax.export.export(jax.jit(keep), platforms=[platform])(*arrays)
        return exported.mlir_module().count("stablehlo.while")

    assert loops("cuda") == loops("rocm") == 1
    assert loops("cpu") == loops("tpu") == 3


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_a_long_chain_of_suppression(threshold):
    """Each box overlaps only the next ones: every second or so survives in turn."""
    x = np.arange(200, dtype=np.float32)
    boxes = np.stack([x, 0 * x, x + 3, 0 * x + 3], 1)
    scores = -x
    keep = nms.nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=threshold)
    np.testing.assert_array_equal(keep, mask(greedy(boxes, scores, threshold), 200))


@pytest.mark.parametrize("n", [0, 1])
def test_none_or_one_box(n):
    boxes, scores = jnp.ones((n, 4)), jnp.ones(n)
    assert nms.nms(boxes, scores, iou_threshold=0.5).tolist() == [True] * n
    invalid = jnp.zeros(n, bool)
    assert not nms.nms(boxes, scores, invalid, iou_threshold=0.5).any()
    index, valid = nms.nms_indices(boxes, scores, iou_threshold=0.5, max_output=3)
    assert index.tolist() == [0, 0, 0] and valid.sum() == n
    assert nms.soft_nms(boxes, scores).tolist() == [1.0] * n


def test_all_scores_equal_goes_by_index(rng):
    boxes, _ = crowd(rng, 100)
    scores = np.ones(100, np.float32)
    keep = nms.nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=0.5)
    np.testing.assert_array_equal(keep, mask(greedy(boxes, scores, 0.5), 100))
    assert keep[0]


def test_identical_and_empty_boxes():
    boxes = jnp.array([[5.0, 5, 5, 5]] * 3 + [[0, 0, 10, 10]] * 3)
    keep = nms.nms(boxes, jnp.arange(6.0), iou_threshold=0.5)
    # Without area nothing is suppressed; of the identical only the best remains.
    assert keep.tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.1, 0.7])
def test_iou_equal_to_the_threshold_is_kept(threshold):
    """Suppression is IoU > threshold, compared as if IoU were widened to float64."""
    height = {0.5: 5.0, 0.25: 2.5, 0.1: 1.0, 0.7: 7.0}[threshold]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, height]], np.float32)
    scores = np.array([1, 0.5], np.float32)
    keep = nms.nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=threshold)
    # float32(0.1) is above 0.1, so that IoU of 1/10 does suppress; the others do not.
    assert keep[1] == (threshold != 0.1)
    np.testing.assert_array_equal(keep, mask(greedy(boxes, scores, threshold), 2))


def test_decisions_within_one_rounding_error(rng):
    """Thresholds just at and just below the IoU of some pair: no bit may differ."""
    boxes, _ = crowd(rng, 60, objects=2)
    scores = -np.arange(60, dtype=np.float32)
    overlaps = np.concatenate([iou_with(b, boxes) for b in boxes])
    run = jax.jit(
        lambda boxes, threshold: nms._greedy_tiles(
            boxes,
            jnp.zeros((1, 60), jnp.int32),
            jnp.ones((1, 60), bool),
            threshold=threshold,
            max_output=60,
            tile=64,
        )
    )
    for t in rng.choice(overlaps[(overlaps > 0.2) & (overlaps < 0.9)], 20):
        for threshold in (t, np.nextafter(t, np.float32(0))):
            position, count = run(jnp.asarray(boxes)[None], threshold)
            kept = greedy(boxes, scores, float(threshold))
            np.testing.assert_array_equal(position[0, : count[0]], kept)


def test_padded_boxes_change_nothing(rng):
    boxes, scores = crowd(rng, 90)
    slots = rng.permutation(120)[:90]  # the real boxes, in order, among padded ones
    slots.sort()
    padded_boxes = np.full((120, 4), np.nan, np.float32)
    padded_scores = np.full(120, np.nan, np.float32)
    padded_boxes[slots], padded_scores[slots] = boxes, scores
    classes = rng.integers(1, 3, 120)
    arrays = jnp.asarray(padded_boxes), jnp.asarray(padded_scores)
    valid = jnp.asarray(mask(slots, 120))
    keep = nms.nms(*arrays, valid, iou_threshold=0.4)
    kept = greedy(boxes, scores, 0.4)
    np.testing.assert_array_equal(keep, mask(slots[kept], 120))
    keep = nms.classwise_nms(*arrays, jnp.asarray(classes), valid, iou_threshold=0.4)
    kept = greedy(boxes, scores, 0.4, classes[slots])
    np.testing.assert_array_equal(keep, mask(slots[kept], 120))
    soft = nms.soft_nms(*arrays, valid)
    np.testing.assert_array_equal(
        soft[slots], nms.soft_nms(jnp.asarray(boxes), jnp.asarray(scores))
    )
    assert not soft[~valid].any()


def test_infinitely_bad_scores_still_count():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10]])
    scores = jnp.full(3, -jnp.inf)
    valid = jnp.array([False, True, True])
    keep = nms.nms(boxes, scores, valid, iou_threshold=0.5)
    assert keep.tolist() == [False, True, True]


def test_classwise_nms_separates_classes(rng):
    boxes, scores = crowd(rng, 150)
    boxes = boxes + np.float32(30_000)  # where shifting by class would round
    classes = rng.integers(1, 4, 150)
    keep = nms.classwise_nms(
        jnp.asarray(boxes),
        jnp.asarray(scores),
        jnp.asarray(classes),
        iou_threshold=0.5,
    )
    kept = greedy(boxes, scores, 0.5, classes)
    assert len(kept) > len(greedy(boxes, scores, 0.5))
    np.testing.assert_array_equal(keep, mask(kept, 150))


@pytest.mark.parametrize("max_output", some((1, 10, 64, 400), 64, 400))
def test_nms_indices_are_the_first_of_the_kept(rng, max_output):
    boxes, scores = crowd(rng, 300, objects=40)
    kept = greedy(boxes, scores, 0.6)
    assert 64 < len(kept) < 300
    index, valid = nms.nms_indices(
        jnp.asarray(boxes),
        jnp.asarray(scores),
        iou_threshold=0.6,
        max_output=max_output,
    )
    assert index.shape == (max_output,)
    np.testing.assert_array_equal(index[valid], kept[:max_output])
    assert valid.sum() == min(max_output, len(kept))
    assert (index[~valid] == 0).all()


def test_vmap_is_a_loop_over_images(rng):
    images = [crowd(rng, 200, objects) for objects in (1, 5, 60, 200)]
    boxes, scores = (jnp.asarray(np.stack(x)) for x in zip(*images, strict=True))
    valid = jnp.asarray(rng.random((4, 200)) < 0.9)

    def first(boxes, scores, valid):
        return nms.nms_indices(boxes, scores, valid, iou_threshold=0.5, max_output=70)

    index, found = jax.jit(jax.vmap(first))(boxes, scores, valid)
    pairs = jax.vmap(jax.vmap(first))(
        *(x.reshape(2, 2, *x.shape[1:]) for x in (boxes, scores, valid))
    )
    np.testing.assert_array_equal(pairs[0].reshape(index.shape), index)
    for i in range(4):
        one_index, one_found = first(boxes[i], scores[i], valid[i])
        np.testing.assert_array_equal(index[i], one_index)
        np.testing.assert_array_equal(found[i], one_found)
    shared_boxes = jax.vmap(first, (None, 0, 0))(boxes[1], scores, valid)[0][1]
    np.testing.assert_array_equal(shared_boxes, index[1])


def test_gradient_is_zero_not_an_error(rng):
    boxes, scores = map(jnp.asarray, crowd(rng, 20))

    def kept_area(boxes):
        keep = nms.nms(boxes, scores, iou_threshold=0.5)
        return jnp.where(keep, boxes.sum(1), 0).sum()

    keep = nms.nms(boxes, scores, iou_threshold=0.5)
    np.testing.assert_array_equal(jax.grad(kept_area)(boxes)[:, 0], keep)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_nonsense_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="iou_threshold is .* expected"):
        nms.nms(jnp.zeros((2, 4)), jnp.zeros(2), iou_threshold=threshold)


def worst_cases(rng, n=260):
    """Scenes of several tiles each, by name: boxes and scores."""
    one = np.array([30, 40, 90, 80], np.float32)
    near = one + rng.uniform(-1, 1, (n, 4)).astype(np.float32)
    y, x = np.divmod(np.arange(n, dtype=np.float32), 16)
    grid = np.stack([10 * x, 10 * y, 10 * x + 8, 10 * y + 8], 1)
    touching = np.stack([10 * x, 10 * y, 10 * x + 10, 10 * y + 10], 1)
    half = np.linspace(50, 0, n, dtype=np.float32)[:, None]
    nested = np.concatenate([60 - half, 60 - half, 60 + half, 60 + half], 1)
    steps = np.arange(n, dtype=np.float32)[:, None] * np.float32(0.5)
    chain = steps + np.array([0, 0, 3, 3], np.float32)
    falling = -np.arange(n, dtype=np.float32)
    equal = np.ones(n, np.float32)
    late = np.concatenate([np.broadcast_to(one, (n - 40, 4)), grid[-40:]])
    return dict(
        all_overlap=(near, rng.permutation(n).astype(np.float32)),
        all_the_same=(np.broadcast_to(one, (n, 4)), equal),
        none_overlap=(grid, rng.permutation(n).astype(np.float32)),
        touching=(touching, equal),
        nested=(nested, falling),
        chain=(chain, falling),
        equal_scores=(crowd(rng, n)[0], equal),
        far_away=(crowd(rng, n)[0] + np.float32(1e5), falling),
        found_in_the_last_tile=(late, falling),
    )


@pytest.mark.parametrize("threshold", some((0.3, 0.7), 0.7))
def test_worst_cases_equal_the_loop_alone_and_in_one_batch(rng, threshold):
    cases = worst_cases(rng)
    expected = {
        name: mask(greedy(*arrays, threshold), 260) for name, arrays in cases.items()
    }
    assert expected["all_the_same"].sum() == 1 and expected["none_overlap"].all()
    one = functools.partial(nms.nms, iou_threshold=threshold)
    for name, arrays in cases.items():
        keep = one(*map(jnp.asarray, arrays))
        np.testing.assert_array_equal(keep, expected[name], err_msg=name)
    # In a batch the images that are done wait for those that are not.
    together = [jnp.asarray(np.stack(x)) for x in zip(*cases.values(), strict=True)]
    for name, keep in zip(cases, jax.jit(jax.vmap(one))(*together), strict=True):
        np.testing.assert_array_equal(keep, expected[name], err_msg=name)


def soft_loop(boxes, scores, decay):
    scores, left = scores.astype(np.float64), list(range(len(scores)))
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        overlap = np.nan_to_num(iou_with(boxes[best], boxes))
        for i in left:
            scores[i] *= decay(overlap[i])
    return scores


def test_soft_nms_equals_the_loop(rng):
    boxes, scores = crowd(rng, 60)
    got = nms.soft_nms(jnp.asarray(boxes), jnp.asarray(scores), sigma=0.4)
    expected = soft_loop(boxes, scores, lambda o: np.exp(-(o**2) / 0.4))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    got = nms.soft_nms_linear(jnp.asarray(boxes), jnp.asarray(scores))
    expected = soft_loop(boxes, scores, lambda o: 1 - o if o >= 0.3 else 1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_soft_nms_takes_boxes_and_scores_of_any_two_dtypes(rng):
    """The new scores are float32, or float64 where the scores are."""
    boxes, scores = crowd(rng, 20)
    expected = nms.soft_nms(jnp.asarray(boxes), jnp.asarray(scores))
    half = jnp.asarray(scores, jnp.bfloat16)
    for decayed in (nms.soft_nms, nms.soft_nms_linear):
        found = decayed(jnp.asarray(boxes), half)
        np.testing.assert_array_equal(
            found, decayed(jnp.asarray(boxes), half.astype(jnp.float32))
        )
    with jax.enable_x64(True):
        for a, b in ((np.float64, np.float32), (np.float32, np.float64)):
            found = nms.soft_nms(jnp.asarray(boxes, a), jnp.asarray(scores, b))
            assert found.dtype == b
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_soft_nms_by_hand():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    scores = nms.soft_nms(boxes, jnp.array([0.5, 0.4, 0.9]), sigma=0.5)
    expected = [0.5, 0.4 * np.exp(-0.25 / 0.5), 0.9]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
