"""Several canvases: who goes where, batches of one kind, the same on every host."""

import cv2
import numpy as np
import pytest

from frcnn_jax.data import images, pipeline
from frcnn_jax.data.source import Example, Source
from frcnn_jax.types import Batch

LYING, STANDING, SQUARE = (24, 40), (40, 24), (28, 28)
SHAPE = dict(short_side=24, max_side=40, canvas=(LYING, STANDING, SQUARE), max_boxes=2)
KINDS = {(24, 40): LYING, (50, 30): STANDING, (60, 60): SQUARE, (26, 39): LYING}


def make(n=11):
    """Of every kind, more lying than others."""
    kinds = [*KINDS, *[(24, 40)] * 2]
    examples = []
    for i in range(n):
        size = kinds[i % len(kinds)]
        image = np.full((*size, 3), 10 + i, np.uint8)
        box = np.float32([[0, 0, size[1], size[0]]])
        examples.append(Example(image, i, box, np.int32([1]), np.array([False])))
    return Source(examples, ("a",))


def stream(source, n, *, start=0, **options):
    options = dict(batch_size=4, seed=0, flip=False, **SHAPE) | options
    data = pipeline.train_dataset(source, **options)
    return [data[k] for k in range(start, start + n)]


def assert_same(a: Batch, b: Batch):
    for name, x, y in zip(Batch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("size, canvas", KINDS.items())
def test_an_image_takes_the_canvas_that_suits_it(size, canvas):
    options = images.canvases(SHAPE["canvas"])
    assert options[images.choose_canvas(size, 24, 40, options)] == canvas
    # And the picture for prediction is prepared alike.
    ready, fitted = images.prepare(
        np.full((*size, 3), 9, np.uint8), 24, 40, SHAPE["canvas"]
    )
    assert ready.shape[:2] == canvas
    assert (ready[: fitted[0], : fitted[1]] == 9).all()


def test_batches_are_of_one_canvas_and_nothing_is_lost():
    source = make()
    seen = []
    for batch in stream(source, 11):  # four epochs
        shape = batch.image.shape[1:3]
        for i, size in zip(batch.index, batch.image_size, strict=True):
            original = source[int(i)].image.shape[:2]
            assert KINDS[original] == shape
            assert tuple(size.tolist()) == images.fit(original, 24, 40, shape)
        np.testing.assert_array_equal(
            batch.gt_boxes[:, 0, 2:], batch.image_size[:, ::-1]
        )
        seen += batch.index.tolist()
    counts = np.bincount(seen, minlength=11)
    assert counts.max() <= 4 and counts.min() >= 3 and len(seen) == 44


def test_every_host_takes_its_part_of_the_same_batch():
    for count in (2, 4):
        parts = [
            stream(make(), 6, process_index=p, process_count=count)
            for p in range(count)
        ]
        for whole, *shares in zip(stream(make(), 6), *parts, strict=True):
            fields = zip(*(share[:-1] for share in shares), strict=True)
            assert_same(whole, Batch(*map(np.concatenate, fields)))


def test_a_batch_does_not_depend_on_those_before_it():
    for a, b in zip(stream(make(), 8)[5:], stream(make(), 3, start=5), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_evaluation_sees_every_example_once(batch_size):
    source = make()
    data = pipeline.eval_dataset(source, batch_size=batch_size, **SHAPE)
    batches = [data[k] for k in range(len(data))]
    expected = sum(-(-n // batch_size) for n in (7, 2, 2))
    assert len(batches) == expected
    valid = np.concatenate([b.valid for b in batches])
    index = np.concatenate([b.index for b in batches])
    assert sorted(index[valid]) == list(range(11))
    assert [b.image.shape[1:3] for b in batches] == sorted(
        (b.image.shape[1:3] for b in batches), key=[LYING, STANDING, SQUARE].index
    )
    for b in batches:
        assert not b.image[~b.valid].any() and not b.gt_valid[~b.valid].any()


def test_sizes_come_from_files_where_annotations_are_silent(tmp_path):
    source = make(4)
    paths = []
    for e in source:
        paths.append(str(tmp_path / f"{e.image_id}.png"))
        cv2.imwrite(paths[-1], e.image)
    silent = Source(
        [e._replace(image=p) for e, p in zip(source, paths, strict=True)], ("a",)
    )
    sides = dict(short_side=24, max_side=40, canvas=SHAPE["canvas"])
    found = pipeline.find_buckets(silent, **sides)
    assert found.tolist() == [0, 1, 2, 0]
    (tmp_path / "1.png").unlink()  # dealt with when it is used
    assert pipeline.find_buckets(silent, **sides).tolist() == [0, 0, 2, 0]
    with pytest.warns(UserWarning, match="1.png: skipped"):
        stream(silent, 4, batch_size=1, on_bad_image="skip")


def test_padding_is_less_than_with_one_canvas():
    def padding(canvas):
        batches = stream(make(), 11, canvas=canvas)
        filled = sum(b.image_size.prod(-1).sum() for b in batches)
        return 1 - filled / sum(b.image[..., 0].size for b in batches)

    assert padding(SHAPE["canvas"]) < 0.1 < 0.3 < padding((40, 40))


@pytest.mark.parametrize(
    "canvas", [(LYING, (20, 60)), ((24, 30), (30, 30)), (SQUARE, SQUARE)]
)
def test_canvases_that_cannot_hold_the_images(canvas):
    with pytest.raises(ValueError, match="cannot hold images of short_side=24"):
        images.check_canvas(24, 40, canvas)
