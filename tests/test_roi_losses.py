"""Losses found by name against float64 loops; no trace of rows that do not count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import losses, roi_losses
from frcnn_jax.training import named

STDS = (0.1, 0.1, 0.2, 0.2)
BOX = ("smooth_l1", "l1", "iou", "giou", "diou", "ciou")


def drawn(rng, n=6, classes=3):
    corner = rng.uniform(0, 30, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (n, 2))], 1)
    return (
        boxes.astype(np.float32),
        rng.normal(0, 2, (n, classes, 4)).astype(np.float32),
        np.array([2, 0, 1, -1, 3, 0], np.int32),
        rng.normal(0, 2, (n, 4)).astype(np.float32),
    )


def moved(box, deltas):
    """Eq. (2) by hand: the box that the deltas make of an RoI."""
    (x1, y1, x2, y2), (tx, ty, tw, th) = box, np.multiply(deltas, STDS)
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + tx * w, y1 + h / 2 + ty * h
    w, h = w * np.exp(tw), h * np.exp(th)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlaps(a, b):
    """IoU and what grew out of it, as the papers write them."""
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    (wa, ha), (wb, hb) = ((x2 - x1, y2 - y1) for x1, y1, x2, y2 in (a, b))
    union = wa * ha + wb * hb - w * h
    iou = w * h / union
    cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    diou = iou - (dx * dx + dy * dy) / (cw * cw + ch * ch)
    v = 4 / math.pi**2 * (math.atan(wa / ha) - math.atan(wb / hb)) ** 2
    return dict(
        iou=iou,
        giou=iou - (cw * ch - union) / (cw * ch),
        diou=diou,
        ciou=diou - v / (1 - iou + v) * v,
    )


def slow(name, row, target, box):
    off = np.abs(np.float64(row) - np.float64(target))
    if name == "l1":
        return off.sum()
    if name == "smooth_l1":
        return np.where(off < 1, off * off / 2, off - 0.5).sum()
    box = np.float64(box)
    return (
        1 - overlaps(moved(box, np.float64(row)), moved(box, np.float64(target)))[name]
    )


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("name", BOX)
def test_box_losses_are_those_of_a_loop(rng, name, rows):
    boxes, deltas, labels, wanted = drawn(rng)
    deltas = deltas[:, :rows]
    loss = getattr(roi_losses, name)
    found = loss(roi_losses.box_rows(boxes, deltas, labels, wanted), normalizer=16)
    expected = sum(
        slow(name, row[min(label - 1, rows - 1)], target, box)
        for row, box, label, target in zip(deltas, boxes, labels, wanted, strict=True)
        if label >= 1
    )
    np.testing.assert_allclose(found, expected / 16, rtol=1e-5)


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("name", BOX)
def test_box_losses_have_no_trace_of_other_rows(rng, name, objects):
    boxes, deltas, labels, wanted = drawn(rng)
    labels = labels if objects else np.minimum(labels, 0)

    def loss(deltas, boxes, wanted):
        rows = roi_losses.box_rows(boxes, deltas, labels, wanted)
        return getattr(roi_losses, name)(rows, normalizer=16)

    clean = loss(deltas, boxes, wanted)
    for array in (deltas, boxes, wanted):
        array[labels < 1] = np.nan
    value, gradient = jax.value_and_grad(loss)(deltas, boxes, wanted)
    np.testing.assert_array_equal(value, clean)
    assert np.isfinite(gradient).all() and not gradient[labels < 1].any()
    assert bool(gradient.any()) == objects


def slow_class_loss(logits, labels, gamma, weights):
    total = 0.0
    for row, label in zip(np.float64(logits), labels, strict=True):
        if label >= 0:
            p = np.exp(row - row.max())
            p = (p / p.sum())[label]
            total -= weights[label] * (1 - p) ** gamma * math.log(p)
    return total


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("gamma", [None, 0.0, 1.5, 2.0])
def test_class_losses_are_those_of_a_loop(rng, gamma, weights):
    logits = rng.normal(0, 2, (7, 4)).astype(np.float32)
    labels = np.array([0, 1, -1, 3, 2, 0, 3], np.int32)
    rows = roi_losses.class_rows(logits, labels)
    kwargs = dict(normalizer=16, weights=weights)
    if gamma is None:
        found = roi_losses.cross_entropy(rows, **kwargs)
    else:
        found = roi_losses.focal(rows, gamma=gamma, **kwargs)
    expected = slow_class_loss(logits, labels, gamma or 0.0, weights or (1,) * 4) / 16
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [[0, 2, -1], [-1, -1, -1]])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_finite_gradients_where_it_is_sure(labels, gamma):
    logits = jnp.array([[90.0, 0, 0], [0, 0, 90.0], [jnp.nan] * 3])

    def loss(logits):
        rows = roi_losses.class_rows(logits, jnp.array(labels))
        return roi_losses.focal(rows, normalizer=4, gamma=gamma)

    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 0 and np.isfinite(gradient).all() and not gradient[2].any()


def test_the_names_without_arguments_are_the_terms_of_detector_loss(rng):
    boxes, deltas, labels, wanted = drawn(rng)
    logits = rng.normal(0, 1, (6, 4)).astype(np.float32)
    cls, box = losses.detector_loss(
        logits, deltas, labels, wanted, normalizer=16, beta=0.0
    )
    rows = roi_losses.box_rows(boxes, deltas, labels, wanted)
    np.testing.assert_allclose(roi_losses.l1(rows, normalizer=16), box, rtol=1e-6)
    rows = roi_losses.class_rows(logits, labels)
    found = roi_losses.cross_entropy(rows, normalizer=16)
    np.testing.assert_allclose(found, cls, rtol=1e-6)


@pytest.mark.parametrize(
    "group, kind, message",
    [
        (dict(name="gioo"), ValueError, "roi_box_loss.name='gioo': no function.*giou"),
        (dict(name="os.path.nothing"), ValueError, "no function of that name"),
        (dict(name="l1", beta=1.0), TypeError, r"\('l1'\): unexpected \['beta'\]"),
        (dict(name="", beta=1.0), ValueError, r"\['beta'\] but no name"),
        (dict(name=3), ValueError, "name=3: expected a text"),
    ],
)
def test_a_name_that_is_wrong_is_said(group, kind, message):
    with pytest.raises(kind, match=message):
        named.function({"roi_box_loss": group}, "roi_box_loss")


def test_weights_of_another_number_of_classes_are_refused():
    rows = roi_losses.class_rows(jnp.zeros((2, 3)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match="weights=.*a tuple of 3"):
        roi_losses.cross_entropy(rows, normalizer=1, weights=(1.0, 2.0))
