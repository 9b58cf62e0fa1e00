"""Losses against float64 loops, and no trace of rows that do not count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import losses
from frcnn_jax.ops import boxes as box_ops


def slow_smooth_l1(x, beta):
    x = abs(float(x))
    return x * x / (2 * beta) if x < beta else x - beta / 2


def slow_log_loss(logits, label):
    logits = np.asarray(logits, np.float64)
    top = logits.max()
    return top + math.log(np.exp(logits - top).sum()) - logits[label]


def slow_box_loss(deltas, targets, beta):
    off = np.float64(deltas) - np.float64(targets)
    return sum(slow_smooth_l1(x, beta) for x in off)


# -- smooth L1 -------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.0, 1 / 9, 1, 2.5])
def test_smooth_l1_is_the_slow_one(beta):
    x = jnp.array([-5.0, -1.0, -0.5, -0.11, 0.0, 0.01, 1 / 9, 0.9, 1.0, 7.0])
    expected = [slow_smooth_l1(v, beta) for v in x]
    np.testing.assert_allclose(
        losses.smooth_l1(x, beta=beta), expected, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("beta", [0, 1 / 9, 1.0])
def test_smooth_l1_slope_is_bounded_and_zero_at_zero(beta):
    x = jnp.array([-3.0, -1.0, -beta / 2, 0.0, beta / 2, beta, 3.0])
    slope = jax.vmap(jax.grad(lambda v: losses.smooth_l1(v, beta=beta)))(x)
    expected = np.clip(x / beta, -1, 1) if beta else np.sign(x)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


# -- focal loss ------------------------------------------------------------------------


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.9, 0.5)])
def test_sigmoid_focal_loss_is_the_formula(rng, alpha, gamma):
    logits, targets = rng.normal(0, 3, (4, 7)), rng.integers(0, 2, (4, 7))
    p = 1 / (1 + np.exp(-logits))
    p_t = np.where(targets, p, 1 - p)
    expected = -np.where(targets, alpha, 1 - alpha) * (1 - p_t) ** gamma * np.log(p_t)
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(targets)
    loss = jax.jit(lambda *a: losses.sigmoid_focal_loss(*a, alpha=alpha, gamma=gamma))
    np.testing.assert_allclose(loss(*args), expected, rtol=2e-5)
    np.testing.assert_array_equal(jax.vmap(loss)(*args), loss(*args))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss_of_the_certain_is_finite(gamma):
    logits = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    for target in (0, 1):
        value, gradient = jax.vmap(
            jax.value_and_grad(
                lambda x, target=target: losses.sigmoid_focal_loss(
                    x, jnp.asarray(target), gamma=gamma
                )
            )
        )(logits)
        right = value[-1 if target else 0]
        assert right == 0 and np.isfinite(value).all() and np.isfinite(gradient).all()


# -- RPN -------------------------------------------------------------------------------


def rpn_case(rng, shape=(3, 40), softmax=False):
    labels = rng.integers(-1, 2, shape)
    logits = rng.normal(0, 3, (*shape, 2) if softmax else shape)
    deltas, target = rng.normal(0, 1, (2, *shape, 4))
    return [jnp.asarray(v, jnp.float32) for v in (logits, deltas, target)], labels


def slow_rpn(logits, deltas, labels, target, beta):
    """Sums, not yet normalised."""
    cls = box = 0.0
    for i in np.ndindex(labels.shape):
        if labels[i] >= 0:
            both = logits[i] if logits.ndim > labels.ndim else (0.0, logits[i])
            cls += slow_log_loss(both, labels[i])
        if labels[i] == 1:
            box += slow_box_loss(deltas[i], target[i], beta)
    return cls, box


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("shape", [(40,), (3, 40)])
def test_rpn_loss_is_the_slow_one(rng, softmax, shape):
    (logits, deltas, target), labels = rpn_case(rng, shape, softmax)
    args = logits, deltas, jnp.asarray(labels), target
    cls, box = slow_rpn(logits, deltas, labels, target, 1 / 9)
    sampled = (labels >= 0).sum()
    ours = losses.rpn_loss(*args)
    np.testing.assert_allclose(ours, (cls / sampled, box / sampled), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.rpn_loss)(*args), ours, rtol=1e-6)
    fixed = losses.rpn_loss(*args, normalizer=256)
    np.testing.assert_allclose(fixed, (cls / 256, box / 256), rtol=1e-5)
    # eq. (1) as the paper has it: N_cls = 256, N_reg = locations, lambda = 10
    paper = losses.rpn_loss(*args, normalizer=256, box_normalizer=2400)
    np.testing.assert_allclose(paper, (cls / 256, box / 2400), rtol=1e-5)
    _, l1 = losses.rpn_loss(*args, beta=0, box_normalizer=jnp.array(7.0))
    expected = slow_rpn(logits, deltas, labels, target, 0)[1] / 7
    np.testing.assert_allclose(l1, expected, rtol=1e-5)


def test_rpn_loss_by_hand():
    labels = jnp.array([1, 0, -1, -1])
    logits, deltas = jnp.zeros(4), jnp.zeros((4, 4))
    target = jnp.zeros((4, 4)).at[0].set(jnp.array([2.0, 0, 0, 1 / 18]))
    cls, box = losses.rpn_loss(logits, deltas, labels, target)
    assert cls == pytest.approx(math.log(2))
    assert box == pytest.approx((2 - 1 / 18 + 1 / 72) / 2)
    two = jnp.zeros((4, 2))
    assert losses.rpn_loss(two, deltas, labels, target)[0] == pytest.approx(math.log(2))
    # index 1 of the softmax is "object"
    sure = jnp.array([[0.0, 30], [30, 0], [0, 0], [0, 0]])
    assert losses.rpn_loss(sure, deltas, labels, target)[0] == pytest.approx(
        0, abs=1e-6
    )
    sure = jnp.array([30.0, -30, 0, 0])
    assert losses.rpn_loss(sure, deltas, labels, target)[0] == pytest.approx(
        0, abs=1e-6
    )


def total(loss, labels, **rules):
    return lambda logits, deltas, target: sum(
        loss(logits, deltas, labels, target, **rules)
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_rpn_loss_has_no_trace_of_rows_that_do_not_count(rng, softmax):
    args, labels = rpn_case(rng, softmax=softmax)
    unused, no_object = jnp.asarray(labels == -1), jnp.asarray(labels != 1)
    marks = unused, no_object, no_object
    junk = [
        jnp.where(m if m.ndim == x.ndim else m[..., None], jnp.nan, x)
        for m, x in zip(marks, args, strict=True)
    ]
    function = jax.jit(
        jax.value_and_grad(total(losses.rpn_loss, jnp.asarray(labels)), (0, 1, 2))
    )
    value, gradients = function(*args)
    with_junk, junk_gradients = function(*junk)
    assert with_junk == value
    for ours, clean, mark in zip(junk_gradients, gradients, marks, strict=True):
        np.testing.assert_array_equal(ours, clean)
        used = ~np.asarray(mark)
        assert not np.any(ours[~used]) and np.all(np.any(ours[used] != 0, axis=-1))


@pytest.mark.parametrize("label", [-1, 0])
def test_rpn_loss_without_objects_has_finite_gradients(label):
    labels, zeros = jnp.full(6, label), jnp.zeros((6, 4))
    function = jax.jit(jax.value_and_grad(total(losses.rpn_loss, labels), (0, 1, 2)))
    value, (by_logits, *by_deltas) = function(jnp.zeros(6), zeros, zeros)
    assert value == pytest.approx(math.log(2) if label == 0 else 0)
    np.testing.assert_allclose(by_logits, 0.5 / 6 if label == 0 else 0, rtol=1e-6)
    assert not np.any(by_deltas)


def test_losses_of_huge_logits_are_finite():
    labels, zeros = jnp.array([1, 0]), jnp.zeros((2, 4))
    for logits in (jnp.array([-1e4, 1e4]), jnp.array([[1e4, -1e4], [-1e4, 1e4]])):
        cls, _ = losses.rpn_loss(logits, zeros, labels, zeros)
        scale = 1 if logits.ndim == 1 else 2
        assert cls == pytest.approx(1e4 * scale)
        gradient = jax.grad(total(losses.rpn_loss, labels))(logits, zeros, zeros)
        assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 1), (2, 4)])
def test_rpn_loss_names_logits_that_do_not_fit(shape):
    zeros = jnp.zeros((4, 4))
    with pytest.raises(ValueError, match="objectness_logits has shape"):
        losses.rpn_loss(jnp.zeros(shape), zeros, jnp.zeros(4, int), zeros)


# -- Detector --------------------------------------------------------------------------


def detector_case(rng, shape=(2, 30), classes=3, rows=None):
    labels = rng.integers(-1, classes + 1, shape)
    logits = rng.normal(0, 2, (*shape, classes + 1))
    deltas = rng.normal(0, 1, (*shape, rows or classes, 4))
    target = rng.normal(0, 1, (*shape, 4))
    return [jnp.asarray(v, jnp.float32) for v in (logits, deltas, target)], labels


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("shape", [(30,), (2, 30)])
def test_detector_loss_is_the_slow_one(rng, rows, shape):
    (logits, deltas, target), labels = detector_case(rng, shape, rows=rows)
    cls = box = 0.0
    for i in np.ndindex(shape):
        if labels[i] >= 0:
            cls += slow_log_loss(logits[i], labels[i])
        if labels[i] >= 1:
            row = deltas[i][0 if rows == 1 else labels[i] - 1]
            box += slow_box_loss(row, target[i], 1.0)
    args, sampled = (logits, deltas, jnp.asarray(labels), target), (labels >= 0).sum()
    ours = losses.detector_loss(*args)
    np.testing.assert_allclose(ours, (cls / sampled, box / sampled), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.detector_loss)(*args), ours, rtol=1e-6)
    fixed = losses.detector_loss(*args, normalizer=512)
    np.testing.assert_allclose(fixed, (cls / 512, box / 512), rtol=1e-5)


def test_detector_loss_has_no_trace_of_rows_that_do_not_count(rng):
    args, labels = detector_case(rng)
    unused = jnp.asarray(labels == -1)[..., None]
    no_object = jnp.asarray(labels < 1)[..., None]
    other_class = jnp.asarray(labels[..., None] != np.arange(1, 4))[..., None]
    marks = [
        jnp.broadcast_to(m, x.shape)
        for m, x in zip((unused, other_class, no_object), args, strict=True)
    ]
    junk = [jnp.where(m, jnp.nan, x) for m, x in zip(marks, args, strict=True)]
    function = jax.jit(
        jax.value_and_grad(total(losses.detector_loss, jnp.asarray(labels)), (0, 1, 2))
    )
    value, gradients = function(*args)
    with_junk, junk_gradients = function(*junk)
    assert with_junk == value
    for ours, clean, mark in zip(junk_gradients, gradients, marks, strict=True):
        np.testing.assert_array_equal(ours, clean)
        assert not np.any(np.asarray(ours)[mark]) and np.all(np.asarray(ours)[~mark])


@pytest.mark.parametrize("label", [-1, 0])
def test_detector_loss_without_objects_has_finite_gradients(label):
    labels, target = jnp.full(5, label), jnp.zeros((5, 4))
    function = jax.jit(jax.value_and_grad(total(losses.detector_loss, labels), (0, 1)))
    value, gradients = function(jnp.zeros((5, 4)), jnp.zeros((5, 3, 4)), target)
    assert value == pytest.approx(math.log(4) if label == 0 else 0)
    assert np.any(gradients[0]) == (label == 0) and not np.any(gradients[1])


def test_detector_loss_names_deltas_that_do_not_fit():
    with pytest.raises(ValueError, match="needs 3 rows, or 1"):
        losses.detector_loss(
            *(jnp.zeros((5, 4)), jnp.zeros((5, 4, 4))),
            *(jnp.zeros(5, int), jnp.zeros((5, 4))),
        )


def test_losses_of_half_precision_are_float32(rng):
    for case, loss in (
        (rpn_case, losses.rpn_loss),
        (detector_case, losses.detector_loss),
    ):
        (logits, deltas, target), labels = case(rng)
        half = logits.astype(jnp.bfloat16), deltas.astype(jnp.bfloat16)
        ours = loss(*half, jnp.asarray(labels), target)
        full = loss(*(x.astype(jnp.float32) for x in half), jnp.asarray(labels), target)
        assert all(term.dtype == jnp.float32 for term in ours)
        np.testing.assert_array_equal(ours, full)


# -- Box losses ------------------------------------------------------------------------

BOX_LOSSES = {
    losses.giou_loss: box_ops.giou,
    losses.diou_loss: box_ops.diou,
    losses.ciou_loss: box_ops.ciou,
}


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_box_loss_is_one_minus_the_overlap(rng, loss):
    corner, side = rng.uniform(0, 50, (2, 6, 2)), rng.uniform(5, 30, (2, 6, 2))
    a, b = jnp.asarray(np.concatenate([corner, corner + side], -1), jnp.float32)
    pairs = np.diag(BOX_LOSSES[loss](a, b))
    np.testing.assert_allclose(loss(a, b), 1 - pairs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        loss(a.reshape(2, 3, 4), b.reshape(2, 3, 4)).ravel(), loss(a, b), rtol=1e-6
    )
    np.testing.assert_allclose(loss(a, a), 0, atol=1e-6)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_box_loss_pulls_boxes_that_do_not_touch(loss):
    box, target = jnp.array([0.0, 0, 4, 4]), jnp.array([10.0, 0, 14, 4])
    gradient = jax.grad(lambda b: loss(b, target))(box)
    assert gradient[2] < 0 and np.isfinite(gradient).all()  # grow to the right
    step = box - 0.5 * gradient / jnp.linalg.norm(gradient)
    assert loss(step, target) < loss(box, target)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_box_loss_gradient_is_the_slope(rng, loss):
    box, target = jnp.array([1.0, 2, 9, 13]), jnp.array([3.0, 1, 14, 9])
    if loss is losses.ciou_loss:  # alpha is a constant for its gradient
        box = target + jnp.array([2.0, 1.0, 2.0, 1.0])  # same shape: v is 0
    gradient = jax.grad(lambda b: loss(b, target))(box)
    for i, h in enumerate(np.eye(4, dtype=np.float32) * 0.01):
        slope = (loss(box + h, target) - loss(box - h, target)) / 0.02
        assert gradient[i] == pytest.approx(float(slope), abs=2e-3)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_box_loss_of_nothing_is_finite(loss):
    zero = jnp.zeros((3, 4))
    other = jnp.array([[0.0, 0, 0, 0], [3, 3, 3, 9], [1, 1, 4, 5]])
    value, gradient = jax.value_and_grad(lambda b: loss(b, other).sum())(zero)
    assert np.isfinite(value) and np.isfinite(gradient).all()
