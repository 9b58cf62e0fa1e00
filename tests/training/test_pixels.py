"""From pixels of the network to those of the image on disk, where callers do it.

`predict_step` is replaced by one that finds the same two boxes in every image.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import detector
from frcnn_jax.data import pipeline
from frcnn_jax.evaluation import files
from frcnn_jax.training import checkpoint, devices, evaluate
from frcnn_jax.types import Detections
from tests.training import small

# (h, w) on disk -> in the network, on a canvas of 64 x 64: scales of every kind, and
# one image exactly 2 times as high and 3 times as wide as its input.
SIZES = {
    (64, 64): (64, 64),
    (128, 128): (64, 64),
    (2, 192): (1, 64),
    (96, 192): (32, 64),
    (16, 8): (64, 32),
}
BOXES = np.float32([[2, 0.25, 22, 0.75], [8, 0, 30, 1]])  # x1, y1, x2, y2


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def pictures(split):
    return [dict(image=image, boxes=[], labels=[]) for image in images()]


def expected(i):
    """By hand: x times the widths' ratio, y times the heights'."""
    (h, w), (network_h, network_w) = list(SIZES.items())[i]
    sx, sy = w / network_w, h / network_h
    return BOXES * np.float32([sx, sy, sx, sy])


def stub(variables, batch, **_):
    """Two boxes an image, of classes 2 and 1, and one that is not valid."""
    b = batch.image.shape[0]
    found = Detections(
        boxes=jnp.concatenate([BOXES, jnp.full((1, 4), 7.0)]),
        scores=jnp.array([0.9, 0.8, 0.0]),
        classes=jnp.array([2, 1, 0]),
        valid=jnp.array([True, True, False]),
    )
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (b, *x.shape)), found)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_detector_finds_boxes_in_pixels_of_the_image(batch_size, monkeypatch):
    monkeypatch.setattr(detector, "predict_step", stub)
    meta = checkpoint.Meta(small.config(), ("a", "b"), (3, 8), 0, {}, {})
    found = detector.Detector(None, {}, meta, batch_size=batch_size)(images())
    assert found.boxes.shape == (len(SIZES), 3, 4)
    for i, (size, network) in enumerate(SIZES.items()):
        np.testing.assert_allclose(found.boxes[i, :2], expected(i), rtol=1e-6)
        # What is made of network boxes agrees with what is made of the detector's.
        one = Detections(*(field[i] for field in found))
        plain = one._replace(boxes=BOXES[[0, 1, 1]])
        ours = files.to_results(one, i, size, size, (3, 8))
        theirs = files.to_results(plain, i, network, size, (3, 8))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.pop("bbox"), b.pop("bbox"), rtol=1e-6)
            assert a == b


@pytest.mark.parametrize("batch_size", [2, 4])
def test_evaluation_writes_boxes_in_pixels_of_the_image(batch_size):
    data = pipeline.build(
        "dicts:tests.training.test_pixels.pictures",
        classes=("a", "b"),
        batch_size=2,
        eval_batch_size=batch_size,
        seed=0,
        train_split="train",
        eval_split="val",
        short_side=64,
        max_side=64,
        canvas=small.CANVAS,
    )
    data = dataclasses.replace(
        data, eval=dataclasses.replace(data.eval, category_ids=(3, 8))
    )
    predict = devices.parallel(stub, in_axes=(None, 0))
    found = evaluate.predict_all(predict, {}, data)
    # Each image once, though the last batch is filled up.
    assert [d["image_id"] for d in found] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [d["category_id"] for d in found] == [8, 3] * len(SIZES)
    for i in range(len(SIZES)):
        boxes = np.array([d["bbox"] for d in found[2 * i : 2 * i + 2]])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected(i), rtol=1e-5)
