"""Tiles against plain loops: the grid, the boxes in a tile, and tiles as a source."""

import numpy as np
import pytest

from frcnn_jax.data import pipeline, tiles
from frcnn_jax.data.source import Example, Source, example_size
from tests.training import small


@pytest.mark.parametrize("size", [(100, 100), (101, 250), (37, 400), (399, 81)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
def test_the_grid_covers_the_image_with_its_overlap(size, overlap):
    grid = tiles.windows(size, (100, 80), overlap=overlap)
    (h, w), seen = size, np.zeros(size, int)
    for x1, y1, x2, y2 in grid:
        assert (y2 - y1, x2 - x1) == (min(h, 100), min(w, 80))
        assert x1 >= 0 and y1 >= 0 and x2 <= w and y2 <= h
        seen[y1:y2, x1:x2] += 1
    assert seen.min() == 1
    for axis, side, length in ((0, 80, w), (1, 100, h)):
        starts = np.unique(grid[:, axis])
        common = starts[:-1] + side - starts[1:]
        assert (common >= np.floor(side * overlap)).all()
        # One tile less would not do.
        assert (
            len(starts) == 1 or (len(starts) - 2) * side * (1 - overlap) + side < length
        )


def test_a_grid_by_hand():
    found = tiles.windows((30, 50), 30, overlap=0.0).tolist()
    assert found == [[0, 0, 30, 30], [20, 0, 50, 30]]


def source(rng, n=3):
    examples = []
    for i in range(n):
        corner = rng.uniform(0, 80, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (6, 2))], 1)
        boxes = np.clip(boxes, 0, [110, 90, 110, 90]).astype(np.float32)
        image = rng.integers(0, 255, (90, 110, 3), np.uint8)
        classes = rng.integers(1, 3, 6).astype(np.int32)
        ignore = np.arange(6) == 5
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        examples.append(Example(image, i, boxes, classes, ignore, (90, 110), area))
    return Source(examples, ("a", "b"), (3, 8), repeats=np.arange(n) + 1.0)


def test_objects_are_cut_and_dropped_below_the_share(rng):
    whole = source(rng)
    cut = tiles.cut_source(whole, size=60, overlap=0.2, min_visible=0.4)
    expected = []
    for i, example in enumerate(whole.examples):
        for x1, y1, x2, y2 in tiles.windows((90, 110), 60, overlap=0.2).tolist():
            rows = []
            for box, c, crowd in zip(
                example.boxes, example.classes, example.ignore, strict=True
            ):
                a = max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2)
                inside = max(0, a[2] - a[0]) * max(0, a[3] - a[1])
                if inside >= 0.4 * (box[2] - box[0]) * (box[3] - box[1]):
                    moved = [a[0] - x1, a[1] - y1, a[2] - x1, a[3] - y1]
                    rows.append((moved, c, crowd, inside))
            if any(not row[2] for row in rows):
                expected.append((i, (x1, y1, x2, y2), rows))
    assert len(cut) == len(expected) > 6
    for tile, (i, window, rows) in zip(cut.examples, expected, strict=True):
        assert tile.window == window and str(tile.image_id).startswith(f"{i}_")
        np.testing.assert_allclose(tile.boxes, [r[0] for r in rows], atol=1e-4)
        assert tile.classes.tolist() == [r[1] for r in rows]
        assert tile.ignore.tolist() == [r[2] for r in rows]
        np.testing.assert_allclose(tile.area, [r[3] for r in rows], rtol=1e-4)
        assert example_size(tile) == (60, 60)
    assert cut.repeats.tolist() == [i + 1 for i, *_ in expected]


def test_empty_tiles_and_whole_images_where_asked(rng):
    whole = source(rng)
    count = len(tiles.windows((90, 110), 60))
    every = tiles.cut_source(whole, size=60, keep_empty=True)
    assert len(every) == 3 * count
    both = tiles.cut_source(whole, size=60, keep_empty=True, whole=True)
    assert [e.window is None for e in both.examples].count(True) == 3
    assert len(both) == 3 * (count + 1)


def test_training_batches_are_tiles_with_their_pixels(rng):
    whole = source(rng)
    data = pipeline.build(
        "own",
        batch_size=2,
        eval_batch_size=1,
        seed=0,
        train_split="train",
        eval_split="val",
        short_side=60,
        max_side=60,
        canvas=(64, 64),
        max_boxes=8,
        flip=False,
        threads=1,
        tiles=dict(size=60),
        sources=(whole, whole),
    )
    assert len(data.eval) == 3 < len(data.train)
    batch = next(data.train_batches())
    for i, index in enumerate(batch.index):
        tile = data.train[int(index)]
        x1, y1, x2, y2 = tile.window
        pixels = tile.image[y1:y2, x1:x2]
        np.testing.assert_array_equal(batch.image[i, :60, :60], pixels)
        n = int(batch.gt_valid[i].sum())
        np.testing.assert_allclose(batch.gt_boxes[i, :n], tile.boxes, atol=1e-4)
    assert small.CANVAS == (64, 64)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(size=0), "data.tiles.size=0"),
        (dict(size=(3, 4, 5)), "data.tiles.size="),
        (dict(size=60, overlap=1.0), "data.tiles.overlap=1.0"),
        (dict(size=60, min_visible=2), "data.tiles.min_visible=2"),
    ],
)
def test_what_is_out_of_range_is_said(rng, values, message):
    with pytest.raises(ValueError, match=message):
        tiles.cut_source(source(rng), **values)
