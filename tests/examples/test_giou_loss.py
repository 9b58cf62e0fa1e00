"""The loss of docs/howto/own-loss.md: its values, its padding, and its flag."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.giou_loss import giou_box_loss
from frcnn_jax import roi_losses
from frcnn_jax.training import config as configs
from frcnn_jax.training import named
from frcnn_jax.training.algorithms import fast_rcnn
from frcnn_jax.types import RoITargets
from tests.test_roi_losses import STDS, drawn, moved, overlaps
from tests.training import small

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "own-loss.md"
NAME = "examples.giou_loss.giou_box_loss"


def test_values_are_those_of_a_loop(rng):
    boxes, deltas, labels, wanted = drawn(rng)
    rows = roi_losses.box_rows(boxes, deltas, labels, wanted, stds=STDS)
    found = giou_box_loss(rows, normalizer=8)
    expected = 0.0
    for row, box, label, target in zip(deltas, boxes, labels, wanted, strict=True):
        if label >= 1:
            pair = moved(box, row[label - 1]), moved(box, target)
            expected += 1 - overlaps(*pair)["giou"]
    np.testing.assert_allclose(found, expected / 8, rtol=1e-5)


@pytest.mark.parametrize("name", [NAME, "giou"])
def test_one_flag_puts_it_into_the_step(rng, name):
    """The step's box term is the loss, and its class term that of before."""
    assert "--config.roi_box_loss.name=" in PAGE.read_text()
    c = small.config()
    plain = configs.check(c)
    configs.change(c, [f"roi_box_loss.name={name}"])
    c = configs.check(c)
    assert named.function(c, "roi_box_loss") is not None
    boxes, deltas, labels, wanted = map(jnp.asarray, drawn(rng))
    logits = jnp.asarray(rng.normal(0, 1, (len(boxes), 4)), jnp.float32)
    rois = RoITargets(boxes, labels, wanted)
    loss = fast_rcnn.roi_loss
    cls, box = loss(rois, logits, deltas, config=c, stds=STDS)
    same, other = loss(rois, logits, deltas, config=plain, stds=STDS)
    rows = roi_losses.box_rows(boxes, deltas, labels, wanted, stds=STDS)
    samples = c["roi_targets"]["num_samples"]
    np.testing.assert_allclose(box, giou_box_loss(rows, normalizer=samples), rtol=1e-6)
    np.testing.assert_array_equal(cls, same)
    assert abs(box - other) > 1e-3


@pytest.mark.parametrize("objects", [True, False])
def test_rows_that_do_not_count_may_hold_anything(rng, objects):
    boxes, deltas, labels, wanted = drawn(rng)
    labels = labels if objects else np.minimum(labels, 0)

    def loss(deltas, boxes, wanted):
        rows = roi_losses.box_rows(boxes, deltas, labels, wanted, stds=STDS)
        return giou_box_loss(rows, normalizer=8)

    clean = loss(deltas, boxes, wanted)
    for array in (deltas, boxes, wanted):
        array[labels < 1] = np.nan
    value, gradient = jax.value_and_grad(loss)(deltas, boxes, wanted)
    np.testing.assert_array_equal(value, clean)
    assert np.isfinite(gradient).all() and not gradient[labels < 1].any()
    assert bool(gradient.any()) == objects
