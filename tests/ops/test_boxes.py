"""Boxes against plain float64 loops, by hand, and where they have no area."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.ops import boxes

fast = hypothesis.settings(max_examples=25, derandomize=True, deadline=None)
PAIRWISE = "iou ioa giou diou ciou".split()


def random_boxes(rng, n, size=100.0):
    corner, side = rng.uniform(0, size, (n, 2)), rng.uniform(1, size / 2, (n, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def slow_overlap(name, a, b):
    """One pair, in Python floats, from the definitions."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1
    both = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = aw * ah + bw * bh - both
    iou = both / union
    hw, hh = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    d2 = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    v = 4 / math.pi**2 * (math.atan(aw / ah) - math.atan(bw / bh)) ** 2
    diou = iou - d2 / (hw**2 + hh**2)
    return {
        "iou": iou,
        "ioa": both / (aw * ah),
        "giou": iou - (hw * hh - union) / (hw * hh),
        "diou": diou,
        "ciou": diou - (v / (1 - iou + v) * v if v else 0.0),
    }[name]


# -- Overlap ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
def test_overlap_is_the_slow_one(rng, name):
    a, b = random_boxes(rng, 12), random_boxes(rng, 7)
    b[0] = a[0]  # identical, a twin moved, nested, far away
    b[1] = a[1] + 1
    b[2] = a[2] + np.array([1, 2, -0.5, -0.25]) * (a[2, 2] - a[2, 0]) / 8
    b[3] = a[3] + 1000
    expected = [[slow_overlap(name, one, other) for other in b] for one in a]
    function = getattr(boxes, name)
    ours = function(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(jax.jit(function)(a, b), ours, rtol=1e-5, atol=1e-6)
    batch = jax.jit(jax.vmap(function))(np.stack([a, a + 3]), np.stack([b, b + 3]))
    np.testing.assert_allclose(batch[0], ours, rtol=1e-5, atol=1e-6)


def test_overlap_by_hand():
    a = jnp.array([[0.0, 0.0, 4.0, 4.0]])
    b = jnp.array([[2.0, 0.0, 6.0, 4.0], [0.0, 0.0, 4.0, 4.0], [5.0, 0.0, 9.0, 4.0]])
    np.testing.assert_allclose(boxes.iou(a, b), [[1 / 3, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(boxes.ioa(a, b), [[0.5, 1, 0]], rtol=1e-6)
    # hulls 6x4, 4x4, 9x4; the last leaves a gap of 1x4
    np.testing.assert_allclose(boxes.giou(a, b), [[1 / 3, 1, -4 / 36]], rtol=1e-6)
    diou = [[1 / 3 - 4 / 52, 1, -25 / 97]]
    np.testing.assert_allclose(boxes.diou(a, b), diou, rtol=1e-6)
    np.testing.assert_allclose(boxes.ciou(a, b), diou, rtol=1e-6)  # all squares
    assert boxes.ioa(b * 2, a)[0, 0] == 0.0


def test_ciou_prefers_the_right_shape():
    target = jnp.array([[0.0, 0.0, 8.0, 4.0]])
    same, other = jnp.array([[2.0, 1, 6, 3]]), jnp.array([[3.0, 0, 5, 4]])
    assert boxes.iou(same, target) == boxes.iou(other, target)
    assert boxes.diou(same, target) == boxes.diou(other, target)
    assert boxes.ciou(same, target) > boxes.ciou(other, target)


coordinate = st.floats(0, 500, width=32)
side = st.floats(0, 300, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], np.float32)
)


@fast
@hypothesis.given(box, box)
def test_overlap_properties(a, b):
    one, other = jnp.asarray(a), jnp.asarray(b)
    iou = boxes.elementwise_iou(one, other)
    assert 0 <= iou <= 1.00001
    np.testing.assert_allclose(iou, boxes.elementwise_iou(other, one), atol=1e-6)
    for lower in (
        boxes.elementwise_giou(one, other),
        boxes.elementwise_diou(one, other),
        boxes.elementwise_ciou(one, other),
    ):
        assert -1.7 <= lower <= iou + 1e-4
    if boxes.area(one) > 1e-3:
        np.testing.assert_allclose(boxes.elementwise_iou(one, one), 1, rtol=1e-5)


DEGENERATE = np.array(
    [
        [0, 0, 0, 0],
        [5, 5, 5, 5],
        [1, 2, 1, 9],
        [1, 2, 9, 2],
        [4, 4, 1, 1],
        [0, 0, 1e-25, 1e-25],
        [0, 0, 1e-4, 1e5],
        [3, 4, 10, 12],
    ],
    np.float32,
)
ELEMENTWISE = {
    "iou": boxes.elementwise_iou,
    "giou": boxes.elementwise_giou,
    "diou": boxes.elementwise_diou,
    "ciou": boxes.elementwise_ciou,
    "ioa": lambda a, b: jax.vmap(
        lambda x, y: boxes.ioa(x[None], y[None])[0, 0], (0, 0)
    )(a, b),
    "encode": boxes.encode,
    "decode": boxes.decode,
    "area": lambda a, b: boxes.area(a) + boxes.area(b),
    "clip": lambda a, b: boxes.clip(a, (6, 7)) + boxes.clip(b, (6, 7)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_boxes_without_area_are_finite_with_their_gradients(name):
    n = len(DEGENERATE)
    a = jnp.asarray(np.repeat(DEGENERATE, n, axis=0))
    b = jnp.asarray(np.tile(DEGENERATE, (n, 1)))
    function = ELEMENTWISE[name]

    @jax.jit
    def run(a, b):
        values, pull = jax.vjp(function, a, b)
        return values, pull(jnp.ones_like(values))

    values, gradients = run(a, b)
    assert np.isfinite(values).all() and np.isfinite(values.sum())
    assert np.isfinite(gradients[0]).all() and np.isfinite(gradients[1]).all()


def test_two_empty_boxes_do_not_overlap():
    zero = jnp.zeros((1, 4))
    for name in PAIRWISE:
        assert getattr(boxes, name)(zero, zero) == 0.0
    assert boxes.ioa(zero, jnp.array([[-1.0, -1, 1, 1]])) == 0.0


# -- Parameters ------------------------------------------------------------------------


def test_center_by_hand():
    b = jnp.array([[1.0, 2.0, 5.0, 10.0]])
    assert [float(v[0]) for v in boxes.to_center(b)] == [3, 6, 4, 8]
    np.testing.assert_array_equal(boxes.from_center(*boxes.to_center(b)), b)


def test_encode_by_hand():
    anchor = jnp.array([10.0, 20.0, 30.0, 30.0])  # centre (20, 25), 20 x 10
    box = jnp.array([20.0, 20.0, 30.0, 60.0])  # centre (25, 40), 10 x 40
    expected = np.array([5 / 20, 15 / 10, math.log(10 / 20), math.log(40 / 10)])
    np.testing.assert_allclose(boxes.encode(box, anchor), expected, rtol=1e-6)
    stds = (0.1, 0.1, 0.2, 0.2)
    scaled = boxes.encode(box, anchor, stds=stds)
    np.testing.assert_allclose(scaled, expected / np.array(stds), rtol=1e-6)
    np.testing.assert_allclose(boxes.decode(scaled, anchor, stds=stds), box, rtol=1e-5)


def test_decode_of_nothing_is_the_anchor(rng):
    anchors = jnp.asarray(random_boxes(rng, 5))
    ours = boxes.decode(jnp.zeros((5, 4)), anchors)
    np.testing.assert_allclose(ours, anchors, rtol=1e-5)


def test_decode_bounds_growth_only():
    anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
    grown = boxes.decode(jnp.array([0.0, 0.0, 80.0, -80.0]), anchor)
    np.testing.assert_allclose(grown[2] - grown[0], 1000, rtol=1e-5)
    np.testing.assert_allclose(grown[3] - grown[1], 0, atol=1e-5)
    # after the multiplication by stds
    small = boxes.decode(jnp.array([0.0, 0, 5, 0]), anchor, stds=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(small[2] - small[0], 16 * math.e, rtol=1e-5)
    two = boxes.decode(jnp.array([0.0, 0, 9, 9]), anchor, max_log_ratio=math.log(2))
    np.testing.assert_allclose(two, [-8, -8, 24, 24], rtol=1e-5)


big_enough = box.filter(lambda b: (b[2:] - b[:2] >= 8).all())


@fast
@hypothesis.given(big_enough, big_enough, st.booleans())
def test_decode_inverts_encode(a, b, scaled):
    stds = (0.1, 0.1, 0.2, 0.2) if scaled else (1.0, 1.0, 1.0, 1.0)
    deltas = boxes.encode(jnp.asarray(b), jnp.asarray(a), stds=stds)
    back = boxes.decode(deltas, jnp.asarray(a), stds=stds)
    np.testing.assert_allclose(back, b, rtol=1e-4, atol=1e-2)


def test_half_precision_in_float32_out():
    a = jnp.array([[1000.0, 1000, 1008, 1008]], jnp.bfloat16)
    for name in PAIRWISE:
        assert getattr(boxes, name)(a, a).dtype == jnp.float32
    assert boxes.encode(a, a).dtype == jnp.float32
    wide = jnp.array([[0.0, 0.0, 600.0, 600.0]], jnp.float16)  # area overflows float16
    assert boxes.area(wide) == 360000 and boxes.iou(wide, wide) == 1


# -- Geometry and conventions ----------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 80), np.array([50, 80]), jnp.array([50, 80])])
def test_clip_by_hand(size):
    b = jnp.array([[-5.0, 10, 90, 60], [3, 4, 5, 6], [81, 60, 99, 70], [0, 0, 0, 0]])
    ours = boxes.clip(b, size)
    expected = [[0, 10, 80, 50], [3, 4, 5, 6], [80, 50, 80, 50], [0, 0, 0, 0]]
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(boxes.clip(ours, size), ours)


def test_centered_inside_by_hand():
    centres = np.array([[0, 0], [15, 9], [16, 5], [5, 10], [-1, 5], [15.95, 9.95]])
    b = jnp.asarray(np.concatenate([centres - 22.627, centres + 22.627], 1), "float32")
    inside = boxes.centered_inside(b, (10, 16)).tolist()
    assert inside == [True, True, False, False, False, True]


def test_centered_inside_agrees_within_a_cell():
    # Odd sizes far from the origin, where corners are rounded: x = 1600 is outside.
    half = np.float32(2) ** np.linspace(3, 9, 50, dtype=np.float32) * np.float32(0.7)
    x = np.float32(1600)
    b = jnp.asarray(np.stack([x - half, x - half, x + half, x + half], 1))
    assert not boxes.centered_inside(b, (2000, 1600)).any()
    assert boxes.centered_inside(b, (2000, 1601)).all()


def test_flip_by_hand_and_twice(rng):
    b = jnp.array([[1.0, 2.0, 3.0, 5.0]])
    np.testing.assert_array_equal(boxes.flip(b, 10), [[7, 2, 9, 5]])
    np.testing.assert_array_equal(boxes.flip(boxes.flip(b, 10), 10), b)


def test_rescale_by_hand():
    b = jnp.array([[1.0, 2.0, 3.0, 5.0]])
    np.testing.assert_array_equal(boxes.rescale(b, 2), [[2, 4, 6, 10]])
    np.testing.assert_array_equal(boxes.rescale(b, (2.0, 10.0)), [[10, 4, 30, 10]])
    scale = jnp.array([2.0, 10.0])
    np.testing.assert_array_equal(boxes.rescale(b, scale), [[10, 4, 30, 10]])


def test_conventions_by_hand():
    b = jnp.array([[10.0, 20.0, 40.0, 30.0]])
    np.testing.assert_array_equal(boxes.to_xywh(b), [[10, 20, 30, 10]])
    np.testing.assert_array_equal(
        boxes.to_yxyx_normalized(b, (40, 80)), [[0.5, 0.125, 0.75, 0.5]]
    )
    np.testing.assert_array_equal(boxes.to_inclusive(b), [[10, 20, 39, 29]])
    np.testing.assert_array_equal(boxes.to_inclusive(b, origin=1), [[11, 21, 40, 30]])


@pytest.mark.parametrize(
    "there, back",
    [
        (boxes.to_xywh, boxes.from_xywh),
        (boxes.to_inclusive, boxes.from_inclusive),
        (
            lambda b: boxes.to_inclusive(b, origin=1),
            lambda b: boxes.from_inclusive(b, origin=1),
        ),
        (
            lambda b: boxes.to_yxyx_normalized(b, (64, 96)),
            lambda b: boxes.from_yxyx_normalized(b, (64, 96)),
        ),
    ],
)
def test_conventions_there_and_back(rng, there, back):
    b = jnp.asarray(random_boxes(rng, 6).reshape(2, 3, 4))
    np.testing.assert_allclose(back(there(b)), b, rtol=1e-5)
    assert not np.allclose(there(b), b)
