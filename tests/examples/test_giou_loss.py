"""The loss of docs/howto/own-loss.md: its values, its padding, and its place."""

import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.giou_loss import giou_box_loss
from frcnn_jax import models
from frcnn_jax.training import step
from tests.training import small

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "own-loss.md"
STDS = (0.1, 0.1, 0.2, 0.2)


def moved(box, deltas):
    """Eq. (2) by hand: the box that the deltas make of an RoI."""
    (x1, y1, x2, y2), (tx, ty, tw, th) = box, np.multiply(deltas, STDS)
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + tx * w, y1 + h / 2 + ty * h
    w, h = w * np.exp(tw), h * np.exp(th)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def giou(a, b):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    union = sum(area) - w * h
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return w * h / union - (hull - union) / hull


def given(rng, n=6, classes=3):
    corner = rng.uniform(0, 30, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (n, 2))], 1)
    return (
        rng.normal(0, 2, (n, classes, 4)).astype(np.float32),
        boxes.astype(np.float32),
        np.array([2, 0, 1, -1, 3, 0], np.int32),
        rng.normal(0, 2, (n, 4)).astype(np.float32),
    )


def test_values_are_those_of_a_loop(rng):
    deltas, boxes, labels, wanted = given(rng)
    found = giou_box_loss(deltas, boxes, labels, wanted, normalizer=8, stds=STDS)
    expected = 0.0
    for row, box, label, target in zip(deltas, boxes, labels, wanted, strict=True):
        if label >= 1:
            expected += 1 - giou(moved(box, row[label - 1]), moved(box, target))
    np.testing.assert_allclose(found, expected / 8, rtol=1e-5)


@pytest.mark.parametrize("objects", [True, False])
def test_rows_that_do_not_count_may_hold_anything(rng, objects):
    deltas, boxes, labels, wanted = given(rng)
    labels = labels if objects else np.minimum(labels, 0)
    loss = functools.partial(giou_box_loss, normalizer=8, stds=STDS)
    clean = loss(deltas, boxes, labels, wanted)
    for array in (deltas, boxes, wanted):
        array[labels < 1] = np.nan
    value, gradient = jax.value_and_grad(loss)(deltas, boxes, labels, wanted)
    np.testing.assert_array_equal(value, clean)
    assert np.isfinite(gradient).all() and not gradient[labels < 1].any()
    assert bool(gradient.any()) == objects


def test_the_lines_of_the_page_fit_into_the_step(rng):
    """The page says where they stand; there they give the step's four terms."""
    lines = re.search(r"```python\n(    giou = .+?)```", PAGE.read_text(), re.S)
    source = inspect.getsource(step.image_losses)
    anchor = "    positive = rois.labels >= 1\n"
    assert lines and source.count(anchor) == 1
    own = source.replace(anchor, lines[1] + anchor)
    called = []

    def recorded(*args, **kwargs):
        called.append(kwargs)
        return giou_box_loss(*args, **kwargs)

    scope = {**vars(step), "giou_box_loss": recorded}
    exec(compile(f"from __future__ import annotations\n{own}", "own", "exec"), scope)
    config = small.config().to_dict()
    model = models.build_detector(num_classes=4, **config["model"])
    batch = jax.tree.map(jnp.asarray, small.batch())
    keys = jax.random.split(jax.random.key(0), (2, 3))

    def run(module, batch):
        stage = step.first_stage(module, batch)
        return scope["image_losses"](module, stage, batch, keys, config)[0]

    found, _ = jax.eval_shape(
        functools.partial(model.init_with_output, method=run), keys[0, 0], batch
    )
    assert set(found) == {"rpn_cls", "rpn_box", "roi_cls", "roi_box"}
    assert all(x.shape == (2,) for x in found.values())
    assert called == [dict(normalizer=16, stds=STDS)]
