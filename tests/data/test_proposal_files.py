"""Files of proposals, selective search, and the way of both into batches."""

import cv2
import numpy as np
import pytest

from frcnn_jax.data import named, pipeline, proposal_files
from frcnn_jax.data.proposal_files import NONE, Scored
from frcnn_jax.data.selective_search import selective_search
from frcnn_jax.data.source import Example, Source

H, W = 24, 32
SHAPE = dict(short_side=H, max_side=W, canvas=(H, W), max_boxes=4)


def scored(*rows):
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Scored(table[:, :4], table[:, 4])


FOUND = {
    "a": scored((0, 0, 8, 6, 0.1), (4, 4, 20, 10, 0.9), (60, 40, 90, 70, 0.5)),
    "b": NONE,
    "7": scored((1, 2, 3, 4, 0.0)),
}


def test_a_file_gives_back_what_was_written_best_first(tmp_path):
    path = tmp_path / "deep" / "proposals.npz"
    proposal_files.write(path, FOUND)
    assert [p.name for p in path.parent.iterdir()] == ["proposals.npz"]
    found = proposal_files.read(path)
    assert list(found) == ["a", "b", "7"]
    np.testing.assert_array_equal(found["a"].scores, np.float32([0.9, 0.5, 0.1]))
    np.testing.assert_array_equal(found["a"].boxes[0], [4, 4, 20, 10])
    assert found["b"].boxes.shape == (0, 4) and found["b"].boxes.dtype == np.float32
    np.testing.assert_array_equal(found["7"].boxes, [[1, 2, 3, 4]])


def test_a_file_from_elsewhere_may_have_other_types(tmp_path):
    np.savez(
        tmp_path / "p.npz",
        image_ids=np.array([3, 5]),
        offsets=[0, 1, 1],
        boxes=np.array([[0, 0, 5, 6]]),
        scores=np.array([2.0]),
    )
    found = proposal_files.read(tmp_path / "p.npz")
    assert list(found) == ["3", "5"]
    assert found["3"].boxes.dtype == found["3"].scores.dtype == np.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(boxes=None), r"lacks \['boxes'\]"),
        (dict(offsets=[0, 1]), "offsets"),
        (dict(offsets=[0, 2, 1, 2]), "offsets"),
        (dict(image_ids=["a", "a"]), "twice"),
        (dict(boxes=np.zeros((2, 3))), r"boxes \(2, 3\)"),
        (dict(boxes=[[0, 0, 1, np.nan], [0, 0, 1, 1]]), "row 0"),
        (dict(boxes=[[0, 0, 1, 1], [0, 3, 1, 1]]), "row 1.*y1 <= y2"),
        (dict(scores=[1, np.inf]), "row 1"),
        (dict(image_ids=np.array(["a", {}], object)), "pickled objects, which are"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    arrays = dict(
        image_ids=["a", "b"], offsets=[0, 1, 2], boxes=np.zeros((2, 4)), scores=[1, 1]
    )
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        proposal_files.read(tmp_path / "p.npz")


def test_no_file_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npz.*make_proposals"):
        proposal_files.read(tmp_path / "nothing.npz")
    (tmp_path / "p.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="p.npz is not a readable .npz"):
        proposal_files.read(tmp_path / "p.npz")


# ---------------------------------------------------------------------- in the pipeline

SORTED = FOUND | {"a": Scored(*(rows[[1, 2, 0]] for rows in FOUND["a"]))}


def source(ids=("a", "b")):
    image = np.zeros((2 * H, 2 * W, 3), np.uint8)
    box, one = np.float32([[4, 4, 20, 10]]), np.ones(1, np.int32)
    return Source([Example(image, i, box, one, one == 0) for i in ids], ("thing",))


def batches(dataset, count=1):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def test_proposals_are_scaled_with_the_image_and_padded():
    """The image is halved; the third box loses what lies outside, then its place."""
    options = dict(proposals=SORTED, max_proposals=2, **SHAPE)
    dataset = pipeline.eval_dataset(source(), batch_size=4, **options)
    (batch,) = batches(dataset)
    p = batch.proposals
    assert p.boxes.shape == (4, 2, 4) and p.scores.shape == p.valid.shape == (4, 2)
    np.testing.assert_array_equal(p.boxes[0], [[2, 2, 10, 5], [30, 20, 32, 24]])
    np.testing.assert_array_equal(p.scores[0], np.float32([0.9, 0.5]))
    np.testing.assert_array_equal(p.valid, [[1, 1], [0, 0], [0, 0], [0, 0]])
    assert not p.boxes[1:].any() and not p.scores[1:].any()
    np.testing.assert_array_equal(batch.valid, [1, 1, 0, 0])


def test_boxes_outside_the_image_are_left_out():
    found = {"a": scored((70, 0, 80, 9, 0.9), (0, 0, 6, 6, 0.5))}
    options = dict(proposals=found, max_proposals=3, **SHAPE)
    (batch,) = batches(pipeline.eval_dataset(source("a"), batch_size=1, **options))
    np.testing.assert_array_equal(batch.proposals.valid, [[1, 0, 0]])
    np.testing.assert_array_equal(batch.proposals.boxes[0, 0], [0, 0, 3, 3])


def test_a_mirrored_image_has_mirrored_proposals():
    """The best proposal of "a" is its ground truth, however it was turned."""
    options = dict(proposals=SORTED, max_proposals=3, **SHAPE)
    dataset = pipeline.train_dataset(source("a"), batch_size=1, seed=0, **options)
    seen = set()
    for batch in batches(dataset, 12):
        np.testing.assert_array_equal(batch.proposals.boxes[0, 0], batch.gt_boxes[0, 0])
        assert (
            batch.proposals.boxes[0, :3, 2:] >= batch.proposals.boxes[0, :, :2]
        ).all()
        seen.add(float(batch.gt_boxes[0, 0, 0]))
    assert seen == {2.0, 22.0}


@pytest.fixture
def split_files(tmp_path):
    for split in ("train", "val"):
        found = {str(i): scored((0, 0, 8, 8, 1)) for i in range(40)}
        proposal_files.write(tmp_path / f"{split}.npz", found)
    return tmp_path


def build(**changes):
    settings = dict(batch_size=2, eval_batch_size=2, seed=0, size=64)
    settings |= dict(
        short_side=64, max_side=64, canvas=(64, 64), max_boxes=8, flip=False
    )
    settings |= dict(train_split="train[:4]", eval_split="val[:2]")
    return pipeline.build("shapes", **(settings | changes))


def test_each_split_has_its_file(split_files):
    ids = {
        str(e.image_id) for e in named.load_source("shapes", split="val[:2]", size=64)
    }
    other = {i: scored((0, 0, 4, 4, 1)) for i in ids}
    proposal_files.write(split_files / "val.npz", other)
    data = build(proposals=str(split_files / "{split}.npz"), max_proposals=5)
    train, evaluation = next(data.train_batches()), next(iter(data.eval_batches()))
    assert train.proposals.boxes.shape == (2, 5, 4)
    np.testing.assert_array_equal(train.proposals.boxes[0, 0, 2:], [8, 8])
    np.testing.assert_array_equal(evaluation.proposals.boxes[0, 0, 2:], [4, 4])
    assert next(build().train_batches()).proposals is None


def test_an_image_without_proposals_is_named(tmp_path):
    proposal_files.write(tmp_path / "p.npz", {"a": NONE})
    with pytest.raises(KeyError, match="1 images but not 'b'.*make_proposals"):
        pipeline.read_proposals(str(tmp_path / "p.npz"), "train", source())


# -------------------------------------------------------------------- selective search


def squares():
    image = np.full((60, 80, 3), 30, np.uint8)
    cv2.rectangle(image, (10, 10), (29, 34), (200, 40, 40), -1)
    cv2.rectangle(image, (50, 20), (69, 44), (40, 200, 40), -1)
    return image


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_selective_search_finds_plain_rectangles(mode):
    found = selective_search(squares(), mode=mode)
    boxes = found.boxes
    for x1, y1, x2, y2 in ((10, 10, 30, 35), (50, 20, 70, 45)):
        w = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
        h = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
        common = np.maximum(w, 0) * np.maximum(h, 0)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = common / (area + (x2 - x1) * (y2 - y1) - common)
        assert iou.max() > 0.8
    assert (np.diff(found.scores) < 0).all() and found.scores[0] == 1
    assert (boxes >= 0).all() and (boxes[:, 2:] <= [80, 60]).all()


def test_selective_search_is_the_same_each_time():
    a, b = selective_search(squares()), selective_search(squares())
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert len(selective_search(squares(), max_proposals=3).boxes) == 3


def test_selective_search_in_a_smaller_image_gives_pixels_of_the_original():
    found = selective_search(np.repeat(np.repeat(squares(), 4, 0), 4, 1), max_side=80)
    np.testing.assert_allclose(found.boxes.max(0)[2:], [320, 240])


def test_selective_search_takes_the_smallest_image_and_no_other_mode():
    np.testing.assert_array_equal(
        selective_search(np.zeros((1, 1, 3), np.uint8)).boxes, [[0, 0, 1, 1]]
    )
    with pytest.raises(ValueError, match="mode='slow'.*'fast', 'quality'"):
        selective_search(squares(), mode="slow")
