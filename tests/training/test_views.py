"""Tiles, mirrored and resized images, merged: box for box against a plain NumPy loop.

The network is replaced by one that finds the bounding box of each colour: what it must
find in any view follows from the picture.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import detector
from frcnn_jax.data.source import Example, Source
from frcnn_jax.training import checkpoint, evaluate, views
from frcnn_jax.training import config as configs
from frcnn_jax.types import Detections
from tests.training import small

SIZE = (90, 150)  # (h, w)
OBJECTS = [  # (colour, x1, y1, x2, y2)
    (0, 5, 8, 25, 30),
    (1, 50, 20, 90, 70),  # no tile of 64 pixels has all of it
    (2, 120, 60, 149, 88),
    (0, 100, 5, 118, 15),
]


def picture():
    image = np.zeros((*SIZE, 3), np.uint8)
    for colour, x1, y1, x2, y2 in OBJECTS:
        image[y1:y2, x1:x2, colour] = 255
    return image


def found_in(pixels):
    """[(class, score, box)]: the box around each colour; larger ones score more."""
    rows = []
    for colour in range(3):
        y, x = np.nonzero(pixels[..., colour] > 127)
        if len(x):
            box = np.float32([x.min(), y.min(), x.max() + 1, y.max() + 1])
            area = (box[2] - box[0]) * (box[3] - box[1])
            rows.append((colour + 1, np.float32(area) / np.float32(16384), box))
    return rows


def network(variables, batch, **_):
    """`found_in` of each image of a batch, under jit."""

    def one(image):
        def of(colour):
            lit = image[..., colour] > 127
            x, y = lit.any(0), lit.any(1)
            first = lambda v: jnp.argmax(v)  # noqa: E731
            last = lambda v: len(v) - jnp.argmax(v[::-1])  # noqa: E731
            box = jnp.float32([first(x), first(y), last(x), last(y)])
            area = (box[2] - box[0]) * (box[3] - box[1])
            box = jnp.where(lit.any(), box, 0.0)
            score = jnp.where(lit.any(), area / 16384, 0.0)
            return box, score, jnp.where(lit.any(), colour + 1, 0), lit.any()

        return Detections(*jax.vmap(of)(jnp.arange(3)))

    return jax.vmap(one)(jnp.asarray(batch.image))


def slow(image, wanted):
    """Every view in turn, greedy NMS of each class over all of them."""
    h, w = image.shape[:2]
    parts = [(0, 0, w, h)] if wanted.whole or not wanted.tile else []
    if wanted.tile:
        side = wanted.tile
        for y in starts(h, side, wanted.overlap):
            parts += [
                (x, y, min(x + side, w), min(y + side, h))
                for x in starts(w, side, wanted.overlap)
            ]
    rows = []
    for x1, y1, x2, y2 in parts:
        crop = image[y1:y2, x1:x2]
        seen = found_in(crop)
        if wanted.flip:
            for c, score, box in found_in(crop[:, ::-1]):
                width = x2 - x1
                back = np.float32([width - box[2], box[1], width - box[0], box[3]])
                seen.append((c, score, back))
        rows += [(c, s, box + np.float32([x1, y1, x1, y1])) for c, s, box in seen]
    kept = []
    for c, score, box in sorted(rows, key=lambda row: -row[1]):
        if all(
            k[0] != c or overlap(k[2], box, wanted.merge) <= wanted.iou for k in kept
        ):
            kept.append((c, score, box))
    return kept


def starts(length, side, overlap):
    step, count = side * (1 - overlap), 1
    while side + (count - 1) * step < length - 1e-9:
        count += 1
    return [round(i * max(0, length - side) / max(1, count - 1)) for i in range(count)]


def overlap(a, b, how):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return w * h / (min(areas) if how == "smaller" else sum(areas) - w * h)


GROUPS = [
    dict(tile=64),
    dict(tile=64, whole=False, overlap=0.5),
    dict(tile=64, merge="smaller", iou=0.7),
    dict(flip=True),
    dict(tile=50, flip=True, merge="smaller"),
]


def config(group):
    c = small.config()
    # The picture is seen as it is: no tile and no image is resized.
    c.data.update(short_side=90, max_side=160, canvas=(96, 160), reduced=False)
    c.data.name = "own"
    for name, value in group.items():
        configs.change(c, [f"views.{name}={value}"])
    return c


@pytest.mark.parametrize("group", GROUPS)
def test_the_detector_finds_what_the_loop_finds(group, monkeypatch):
    monkeypatch.setattr(detector, "predict_step", network)
    monkeypatch.setattr(detector.image_files, "fit", lambda size, *_: size)
    c = config(group)
    meta = checkpoint.Meta(c, ("a", "b", "c"), (3, 8, 9), 0, {}, {})
    run = detector.Detector(None, {}, meta, batch_size=2)
    image = picture()
    found = run([image, image[:, ::-1].copy(), image[:60, :60]])
    for i, pixels in enumerate((image, image[:, ::-1], image[:60, :60])):
        expected = slow(pixels, views.of(c.to_dict()))[:10]
        n = len(expected)
        assert found.valid[i].tolist() == [True] * n + [False] * (10 - n)
        np.testing.assert_allclose(
            found.boxes[i, :n], [box for *_, box in expected], atol=1e-3
        )
        assert found.classes[i, :n].tolist() == [c for c, *_ in expected]
        np.testing.assert_allclose(
            found.scores[i, :n], [s for _, s, _ in expected], rtol=1e-5
        )
        assert not found.boxes[i, n:].any()


@pytest.mark.parametrize("group", [*GROUPS, {}])
def test_the_evaluation_finds_what_the_loop_finds(group, monkeypatch):
    from frcnn_jax.data import example as examples

    monkeypatch.setattr(examples, "fit", lambda size, *_: size)
    c = configs.check(config(group))
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    image = picture()
    pictures = [image, image[:, ::-1].copy(), image[:80].copy()]
    source = Source(
        [Example(x, 7 + i, *nothing) for i, x in enumerate(pictures)],
        ("a", "b", "c"),
        (3, 8, 9),
        valid=True,
    )
    data = evaluate._build(c, (source, source))
    found = evaluate.predict_views(network, {}, data, c)
    for i, pixels in enumerate(pictures):
        expected = slow(pixels, views.of(c))
        rows = [row for row in found if row["image_id"] == 7 + i]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        order = np.argsort([-row["score"] for row in rows], kind="stable")
        np.testing.assert_allclose(
            boxes[order], [box for *_, box in expected], atol=1e-3
        )
        categories = [rows[k]["category_id"] for k in order]
        assert categories == [(3, 8, 9)[c - 1] for c, *_ in expected]


def test_the_smaller_area_removes_what_a_tile_has_cut():
    """IoU keeps the halves of the object that no tile holds; `smaller` does not."""
    image = picture()
    by_iou = slow(image, views.check(tile=64))
    by_smaller = slow(image, views.check(tile=64, merge="smaller", iou=0.7))
    second = lambda rows: [row for row in rows if row[0] == 2]  # noqa: E731
    assert len(second(by_iou)) > 1 == len(second(by_smaller))


def test_sizes_change_in_proportion():
    data = dict(short_side=300, max_side=400, canvas=((304, 400), (400, 304)))
    found = views.sides(data, views.check(short_sides=(300, 450)))
    assert [x["short_side"] for x in found] == [300, 450]
    assert [x["max_side"] for x in found] == [400, 600]
    assert found[1]["canvas"] == ((480, 608), (608, 480))


def test_other_sizes_are_merged_too(monkeypatch):
    """At twice the size a box has twice the pixels; in the image it is the same."""
    monkeypatch.setattr(detector, "predict_step", network)
    c = config(dict(short_sides=(90, 180)))
    meta = checkpoint.Meta(c, ("a", "b", "c"), (3, 8, 9), 0, {}, {})
    found = detector.Detector(None, {}, meta)([picture()])
    alone = {c: box for c, _, box in found_in(picture())}
    n = int(found.valid.sum())
    assert sorted(found.classes[0, :n].tolist()) == [1, 2, 3]
    for k in range(n):
        box = alone[int(found.classes[0, k])]
        np.testing.assert_allclose(found.boxes[0, k], box, atol=1.0)


def test_a_mirrored_image_keeps_its_padding_and_its_proposals(rng):
    batch = small.batch(0)
    seen = {}

    def predict(variables, batch):
        seen.update(image=batch.image)
        return network(variables, batch)

    views.mirrored(predict)({}, batch)
    h, w = batch.image_size[0]
    np.testing.assert_array_equal(
        seen["image"][0, :, :w], batch.image[0, :, :w][:, ::-1]
    )
    np.testing.assert_array_equal(seen["image"][0, :, w:], batch.image[0, :, w:])
    assert h < 64


@pytest.mark.parametrize(
    "group, kind, message",
    [
        (dict(tiles=3), TypeError, "unexpected.*'tiles'.*'tile'"),
        (dict(tile=-1), ValueError, "config.views.tile=-1"),
        (dict(whole=False), ValueError, "needs config.views.tile"),
        (dict(merge="mean"), ValueError, "config.views.merge='mean'"),
        (dict(iou=0), ValueError, "config.views.iou=0"),
        (dict(short_sides=(0,)), ValueError, "config.views.short_sides"),
    ],
)
def test_views_that_cannot_be_are_refused(group, kind, message):
    with pytest.raises(kind, match=message):
        views.check(**group)


def test_proposals_of_a_file_have_no_views():
    c = config(dict(flip=True)).to_dict()
    c["algorithm"] = "fast_rcnn"
    with pytest.raises(ValueError, match="proposes its own RoIs"):
        inspect.unwrap(evaluate.predict_views)(network, {}, None, c)


def test_no_views_is_what_there_was():
    assert not views.of({}).several
