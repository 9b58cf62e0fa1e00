"""Augmentation: painted rectangles are found again where their boxes say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.data import augment, pipeline, proposal_files
from frcnn_jax.data.augment import Resized
from frcnn_jax.data.source import Example, Source

SHAPE = dict(short_side=60, max_side=100, canvas=(64, 100))


def painted(size, box):
    """Black with one white rectangle of whole pixels; its box is exact."""
    image = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    boxes = np.array([box], np.float32)
    example = Example(image, 1, boxes, np.int32([1]), np.array([False]))
    return example, Resized(image, boxes, size)


def edges(image):
    """The rectangle's sides by its light along each axis, to a part of a pixel."""
    light = image[..., 0].astype(np.float64) / 255
    x, y = light.max(0), light.max(1)
    cx, cy = (np.average(np.arange(len(v)) + 0.5, weights=v) for v in (x, y))
    w, h = x.sum(), y.sum()
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


sizes = st.tuples(st.integers(50, 130), st.integers(50, 130))


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 10**6), st.sampled_from([(0.3, 0.9), (0.8, 2.0), ()]))
def test_boxes_lie_where_the_rectangle_is(size, seed, jitter):
    rng = np.random.default_rng(seed)
    h, w = size
    y1, x1 = rng.integers(0, (h - 20, w - 20))
    box = (x1, y1, x1 + rng.integers(12, 20), y1 + rng.integers(12, 20))
    example, original = painted(size, box)
    example, found = augment.augment(
        rng, example, original, jitter=jitter, short_sides=(40, 50, 60), **SHAPE
    )
    ch, cw = SHAPE["canvas"]
    assert found.image.shape[0] <= ch and found.image.shape[1] <= cw
    assert found.original_size == size
    if not len(example.boxes):
        assert found.image.max(initial=0) < 255
        return
    assert (example.boxes == [box]).all() and len(found.boxes) == 1
    seen = found.boxes[0]
    limits = np.array([*found.image.shape[1::-1]] * 2)
    inside = (seen > 0.5) & (seen < limits - 0.5)
    if (seen[2:] - seen[:2]).min() > 3:  # enough light to measure
        # Shrinking takes samples, so that an edge may be half a pixel off.
        shrunk = (seen[2:] - seen[:2]).max() < 0.9 * max(box[2] - x1, box[3] - y1)
        tolerance = 1.0 if not inside.all() else 0.6 if shrunk else 0.3
        np.testing.assert_allclose(edges(found.image), seen, atol=tolerance)


def test_the_window_maps_corners_exactly():
    window = augment.Window(x=10, y=20, w=50, h=40, size=(80, 75))
    boxes = np.float32(
        [[10, 20, 60, 60], [20, 30, 30, 40], [0, 0, 20, 30], [0, 0, 9, 9]]
    )
    seen, share = augment.view(boxes, window)
    np.testing.assert_allclose(
        seen[:3], [[0, 0, 75, 80], [15, 20, 30, 40], [0, 0, 15, 20]], atol=1e-5
    )
    np.testing.assert_allclose(share, [1, 1, 100 / 600, 0], rtol=1e-6)


def test_what_is_hardly_visible_is_ignored_and_what_is_gone_dropped(rng):
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.float32([[x, y, x + 20, y + 20] for x in (0, 80) for y in (0, 80)])
    example = Example(image, 1, boxes, np.arange(1, 5), np.zeros(4, bool))
    example = example._replace(area=np.arange(4, dtype=np.float32))
    shape = dict(short_side=50, max_side=50, canvas=(50, 50))
    states = set()
    for _ in range(60):
        new, found = augment.augment(
            rng, example, Resized(image, boxes, (100, 100)), jitter=(1.2, 1.9), **shape
        )
        n = len(found.boxes)
        assert n == len(new.boxes) == len(new.classes) == len(new.ignore)
        assert new.area is not None and (new.area == new.classes - 1).all()
        scale = 50 / 100 * 1.2
        for box, ignored in zip(found.boxes, new.ignore, strict=True):
            share = (box[2] - box[0]) * (box[3] - box[1]) / (20 * scale) ** 2
            if ignored:
                assert share < 0.35  # 0.1 of a box at the largest scale
            states.add((n < 4, bool(ignored)))
    assert {(True, False), (True, True)} <= states


def test_scales_are_drawn_from_the_lists(rng):
    heights = {
        augment.draw_window(rng, (80, 100), short_sides=(30, 40, 50), **SHAPE).size[0]
        for _ in range(40)
    }
    assert heights == {30, 40, 50}
    whole = augment.draw_window(rng, (80, 100), **SHAPE)
    assert whole == augment.Window(0, 0, 100, 80, (60, 75))
    small = [
        augment.draw_window(rng, (80, 100), jitter=(0.5, 0.5), **SHAPE)
        for _ in range(3)
    ]
    assert all(s == augment.Window(0, 0, 100, 80, (30, 38)) for s in small)


def test_proposals_follow(rng):
    example, original = painted((80, 100), (10, 10, 30, 30))
    boxes = np.float32([[10, 10, 30, 30], [0, 0, 1, 1]])
    original = original._replace(
        proposals=proposal_files.Scored(boxes, np.float32([0.9, 0.8]))
    )
    for _ in range(20):
        _, found = augment.augment(rng, example, original, jitter=(1.5, 2), **SHAPE)
        assert found.proposals is not None
        got = dict(
            zip(found.proposals.scores.tolist(), found.proposals.boxes, strict=True)
        )
        for score, box in got.items():
            assert score in np.float32([0.9, 0.8]) and (box[2:] > box[:2]).all()
        if len(found.boxes):
            np.testing.assert_array_equal(found.boxes[0], found.proposals.boxes[0])


# ----------------------------------------------------------------------------- colours


@pytest.mark.parametrize(
    "options",
    [dict(brightness=0.2), dict(contrast=0.5), dict(saturation=0.5), dict(hue=0.1)],
)
def test_colours_change_half_of_the_time(rng, options):
    image = rng.integers(0, 256, (20, 20, 3), np.uint8)
    before = image.copy()
    results = [augment.distort(rng, image, **options) for _ in range(60)]
    changed = sum(not np.array_equal(r, image) for r in results)
    assert 15 < changed < 45
    assert all(r.dtype == np.uint8 and r.shape == image.shape for r in results)
    np.testing.assert_array_equal(image, before)
    difference = [np.abs(r.astype(int) - image).mean() for r in results]
    assert max(difference) < 70


def test_brightness_by_hand():
    class Draws(np.random.Generator):
        def __init__(self):
            super().__init__(np.random.PCG64())

        def random(self, n):
            return np.zeros(n)

        def uniform(self, low, high, n):
            return np.ones(n)

    image = np.full((1, 1, 3), 100, np.uint8)
    assert (augment.distort(Draws(), image, brightness=0.2) == 151).all()
    # (100 - 127.5) * 1.5 + 127.5 = 86.25
    assert (augment.distort(Draws(), image, contrast=0.5) == 86).all()
    red = np.uint8([[[200, 50, 50]]])  # a third of the circle further: green
    turned = augment.distort(Draws(), red, hue=1 / 3)[0, 0]
    np.testing.assert_allclose(turned, [50, 200, 50], atol=3)
    pale = augment.distort(Draws(), red, saturation=-0.5)[0, 0]
    np.testing.assert_allclose(pale, [200, 125, 125], atol=2)
    np.testing.assert_array_equal(augment.distort(Draws(), red), red)


# ----------------------------------------------------------------- through the pipeline


def batches(n, start=0, **options):
    examples = []
    for i in range(5):
        example, _ = painted((80, 100), (10 + i, 20, 40, 50))
        examples.append(example._replace(image_id=i))
    options = dict(batch_size=2, seed=3, max_boxes=4, **SHAPE) | options
    data = pipeline.train_dataset(Source(examples, ("a",)), **options)
    return [data[k] for k in range(start, start + n)]


EVERYTHING = dict(
    short_sides=(40, 50, 60), jitter=(0.3, 2.0), brightness=0.1, contrast=0.3, hue=0.05
)


def test_the_same_step_sees_the_same_pixels():
    once, again = batches(6, augment=EVERYTHING), batches(3, 3, augment=EVERYTHING)
    for a, b in zip(once[3:], again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.gt_boxes, b.gt_boxes)
    assert len({b.image.tobytes() for b in once}) == 6
    cached = batches(6, augment=EVERYTHING, cache=True)
    for a, b in zip(once, cached, strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_an_image_differs_from_epoch_to_epoch():
    seen = {}
    for batch in batches(20, augment=dict(jitter=(0.5, 1.0)), flip=False):
        for i, size in zip(batch.index, batch.image_size, strict=True):
            seen.setdefault(int(i), set()).add(tuple(size.tolist()))
    assert all(len(v) > 3 for v in seen.values())


def test_no_augmentation_is_an_empty_group():
    for a, b in zip(batches(3), batches(3, augment={}), strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_a_misspelt_key_is_named_at_once():
    with pytest.raises(TypeError, match="brigthness"):
        batches(0, augment=dict(brigthness=0.1))
