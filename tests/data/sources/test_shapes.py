"""The synthetic set: reproducible, disjoint splits, exact boxes."""

import itertools

import cv2
import numpy as np
import pytest

from frcnn_jax.data.sources import coco, shapes


def test_an_example_depends_on_its_place_alone():
    a = shapes.load(split="train", num_images=5)
    b = shapes.load(split="train", num_images=900)
    b[17]
    for i in (4, 0):
        np.testing.assert_array_equal(a[i].image, b[i].image)
        np.testing.assert_array_equal(a[i].boxes, b[i].boxes)
        assert a[i].image_id == i + 1


def test_splits_and_seeds_share_no_picture():
    pictures = [
        shapes.load(split=split, num_images=20, seed=seed)[i].image.tobytes()
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for i in range(20)
    ]
    assert len(set(pictures)) == len(pictures)


def test_examples_are_what_they_should_be():
    s = shapes.load(split="val", size=96)
    assert len(s) == 200 and len(shapes.load(split="train")) == 2000
    seen = set()
    for example in list(s)[:100]:
        assert example.image.shape == (96, 96, 3) and example.image.dtype == np.uint8
        boxes = example.boxes
        assert 1 <= len(boxes) == len(example.classes) == len(example.ignore) <= 6
        assert boxes.dtype == np.float32 and not example.ignore.any()
        assert (boxes >= 0).all() and (boxes <= 96).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides.max(-1) > 9.5).all() and (sides.max(-1) < 48.1).all()
        for (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) in itertools.combinations(
            boxes.tolist(), 2
        ):
            w = max(0, min(ax2, bx2) - max(ax1, bx1))
            h = max(0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - w * h
            assert w * h <= 0.201 * union
        seen |= set(example.classes.tolist())
    assert seen == {1, 2, 3, 4} and len(s.classes) == 4


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_boxes_are_tight(rng, name):
    """Against the pixels that drawing the shape alone changes, seen enlarged."""
    for _ in range(10):
        points = shapes.outline(rng, name) * rng.uniform(12, 60)
        assert np.ptp(points, axis=0).max() <= 60
        points += 64 - (points.min(0) + points.max(0)) / 2
        x1, y1, x2, y2 = shapes.box(points)
        big = np.zeros((1024, 1024), np.uint8)
        corners = np.rint(points * 8 - 0.5).astype(np.int32)
        cv2.fillPoly(big, [corners], 255)
        ys, xs = np.nonzero(big)
        bounds = [xs.min() / 8, ys.min() / 8, (xs.max() + 1) / 8, (ys.max() + 1) / 8]
        np.testing.assert_allclose([x1, y1, x2, y2], bounds, atol=0.3)

        image = np.full((128, 128, 3), 90, np.uint8)
        shapes.draw(rng, image, shapes.Shape(1, points, (x1, y1, x2, y2)))
        vivid = np.ptp(image.astype(int), axis=-1) > 40  # neither ground nor shadow
        ys, xs = np.nonzero(vivid)
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose([x1, y1, x2, y2], seen, atol=2.5)


def test_sequence_protocol():
    s = shapes.load(split="test", num_images=3)
    assert len(list(s)) == 3
    np.testing.assert_array_equal(s[-1].image, s[2].image)
    with pytest.raises(IndexError):
        s[3]
    part = s.examples[1:]
    assert [e.image_id for e in part] == [2, 3]


def test_bad_arguments():
    with pytest.raises(ValueError, match="'trian': there are train, val, test"):
        shapes.load(split="trian")
    with pytest.raises(ValueError, match="size=8"):
        shapes.load(split="train", size=8)
    with pytest.raises(TypeError, match="num_image"):
        shapes.load(split="train", num_image=8)  # pyright: ignore


def test_as_coco():
    found = coco.to_coco(shapes.load(split="val", num_images=4))
    assert [i["id"] for i in found["images"]] == [1, 2, 3, 4]
    assert [c["name"] for c in found["categories"]] == list(shapes.CLASSES)
