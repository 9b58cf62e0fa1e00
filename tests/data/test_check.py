"""What the check finds in sets made for it, and in real ones."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.data import anchor_fit, check
from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import coco, voc
from frcnn_jax.ops import anchors as anchor_ops
from frcnn_jax.ops import boxes as box_ops

SHAPE = dict(short_side=40, max_side=60, canvas=(40, 60))


def make(boxes, classes=None, *, ignore=(), image=None, size=(80, 120)):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return Example(
        image=np.zeros((*size, 3), np.uint8) if image is None else image,
        image_id="pic",
        boxes=boxes,
        classes=np.array(classes or [1] * n, np.int32),
        ignore=np.isin(np.arange(n), ignore),
        size=size,
    )


def run(*examples, report=(), **options):
    named = [e._replace(image_id=f"pic{i or ''}") for i, e in enumerate(examples)]
    source = Source(named, ("a", "b"), report=list(report))
    return check.check(source, **(SHAPE | options))


def test_counts_and_histograms_by_hand():
    found = run(
        make([[0, 0, 40, 40], [0, 0, 20, 80], [5, 5, 9, 9]], [1, 2, 1], ignore=[2]),
        make([]),
    )
    assert (found["images"], found["boxes"], found["ignored"]) == (2, 3, 1)
    assert found["images_without_boxes"] == 1
    assert found["classes"] == {
        "a": dict(boxes=2, images=1, ignored=1),
        "b": dict(boxes=1, images=1, ignored=0),
    }
    # Half size: 20x20 and 10x40; what is ignored is no object.
    assert {k: v for k, v in found["sides"].items() if v} == {"16 to 32": 2}
    assert sum(found["aspect_ratios"].values()) == 2
    assert found["aspect_ratios"]["3 to inf"] == 1
    assert found["boxes_per_image"] == dict(median=1.5, mean=1.5, max=3)
    assert found["padding"] == 0 and found["canvases"] == {"40x60": 2}
    assert found["problems"] == []
    json.dumps(found)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(report=["x.xml: dropped cat (1, 1, 1, 1): no area"]), "x.xml: dropped"),
        (dict(max_boxes=1), "1 images have more than data.max_boxes=1 boxes .*most 3"),
        ({}, r"^pic|image pic: 1 box\(es\) stand there twice"),
    ],
)
def test_problems(options, message):
    found = run(make([[1, 1, 9, 9]] * 2 + [[1, 1, 9, 8]]), **options)
    assert any(check.re.search(message, line) for line in found["problems"])
    assert found["duplicates"] == 1


def test_what_is_only_worth_knowing():
    found = run(
        make([[0, 0, 9, 9], [1, 1, 5, 5]]),
        report=["x: clipped 3 boxes to the image of 9x9"],
        max_boxes=1,
        on_overflow="drop_smallest",
    )
    assert found["problems"] == [] and found["clipped"] == 3
    text = " ".join(found["notes"])
    assert "max_boxes=1" in text and "1 classes without a box: b" in text
    assert run(make([]))["problems"] == ["there is no box at all"]


def test_the_same_box_of_another_class_is_no_duplicate():
    assert check.duplicates(make([[1, 1, 9, 9]] * 3, [1, 2, 1])) == 1
    assert check.duplicates(make([])) == 0


def test_unreadable_images_and_wrong_sizes(tmp_path):
    good, bad = (str(tmp_path / f"{n}.png") for n in ("good", "bad"))
    cv2.imwrite(good, np.zeros((80, 120, 3), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = run(
        make([[1, 1, 9, 9]], image=good),
        make([[1, 1, 9, 9]], image=bad),
        make([[1, 1, 9, 9]], image=good, size=(81, 120)),
    )
    assert len(found["unreadable"]) == len(found["problems"]) == 2
    assert "bad.png" in found["problems"][0] and "120x81" in found["problems"][1]
    assert sum(found["sides"].values()) == 1
    assert run(make([[1, 1, 9, 9]], image=bad), decode_images=False)["problems"] == []


def test_several_canvases():
    found = run(
        make([[0, 0, 9, 9]]),
        make([[0, 0, 9, 9]], size=(120, 80)),
        canvas=((40, 60), (60, 40)),
    )
    assert found["canvases"] == {"40x60": 1, "60x40": 1} and found["padding"] == 0


# ----------------------------------------------------------------------------- anchors

LEVELS = [
    (8, anchor_ops.cell_anchors((12, 20), (0.5, 1.0, 2.0)).astype(np.float64)),
    (16, anchor_ops.cell_anchors((33, 60), (0.5, 1.0, 2.0)).astype(np.float64) + 8),
]


def random_boxes(rng, n, size):
    h, w = size
    low = rng.uniform(0, (w - 4, h - 4), (n, 2))
    return np.concatenate([low, low + rng.uniform(3, (w, h) - low)], axis=1).clip(
        0, [w, h, w, h]
    )


def test_best_iou_is_that_of_the_whole_grid(rng):
    for size in ((64, 96), (50, 41)):
        boxes = random_boxes(rng, 40, size)
        best = np.zeros(40)
        for stride, cells in LEVELS:
            shape = (-(-size[0] // stride) + 1, -(-size[1] // stride) + 1)
            grid = np.asarray(anchor_ops.grid(cells.astype(np.float32), shape, stride))
            middle = (grid[:, :2] + grid[:, 2:]) / 2
            grid = grid[(middle <= (size[1], size[0])).all(1)]
            iou = np.asarray(box_ops.iou(jnp.float32(boxes), jnp.float32(grid)))
            best = np.maximum(best, iou.max(1))
        found = anchor_fit.best_iou(boxes, np.tile(np.array(size), (40, 1)), LEVELS)
        np.testing.assert_allclose(found, best, atol=1e-5)


def test_coverage_by_size():
    boxes = np.array([[2.0, 2, 14, 14], [0, 0, 3, 3], [0, 0, 40, 40]])
    sizes = np.tile([64, 96], (3, 1))
    found = anchor_fit.coverage(boxes, sizes, LEVELS)
    assert found["all"]["boxes"] == 3
    assert found["by_side"]["0 to 16"]["boxes"] == 2
    assert found["by_side"]["0 to 16"]["0.5"] == 0.5  # 3x3 has no anchor
    assert found["by_side"]["32 to 64"]["0.5"] == 1.0


def test_kmeans_finds_what_was_put_in(rng):
    truth = np.array([[10.0, 10], [30, 60], [200, 100]])
    shapes = np.repeat(truth, [50, 30, 20], axis=0) * rng.uniform(0.95, 1.05, (100, 2))
    means, iou = anchor_fit.kmeans(rng.permutation(shapes), 3)
    np.testing.assert_allclose(means, truth, rtol=0.05)
    assert iou > 0.9
    means, iou = anchor_fit.kmeans(
        np.tile([[3.0, 4.0]], (5, 1)), 4
    )  # fewer than asked for
    assert means.tolist() == [[3, 4]] and iou == 1.0


def test_suggested_anchors_are_better_or_the_present_ones(rng):
    low = rng.uniform(0, 30, (200, 2))
    square = np.concatenate([low, low + rng.uniform(24, 27, (200, 1))], axis=1)
    sizes = np.tile([64, 96], (200, 1))
    poor = [(8, anchor_ops.cell_anchors((60,), (1.0,)).astype(np.float64))]
    found = anchor_fit.suggest(square, sizes, poor)
    assert found["changes"] and 24 <= found["sizes"][0][0] <= 27
    assert found["coverage"]["0.5"] == 1.0
    assert anchor_fit.coverage(square, sizes, poor)["all"]["0.5"] == 0.0
    exact = np.array([[0.0, 0, 32, 32], [8, 8, 40, 40]])
    cells = [(8, np.array([[-16.0, -16, 16, 16]]))]
    assert not anchor_fit.suggest(exact, sizes[:2], cells)["changes"]


def test_sizes_of_several_levels_keep_their_ratio(rng):
    """Anchors of 16 and 32 reach squares of 22 and 44 when half an octave larger.

    k-means of the sides would put both sizes of a pyramid near one another.
    """
    sides = np.repeat([22.0, 44.0], [180, 20])[:, None]
    low = rng.uniform(0, 40, (200, 2))
    square = np.concatenate([low, low + sides], axis=1)
    sizes = np.tile([96, 96], (200, 1))
    levels = [
        (4, anchor_ops.cell_anchors((16,), (0.5, 1.0, 2.0)).astype(np.float64)),
        (8, anchor_ops.cell_anchors((32,), (0.5, 1.0, 2.0)).astype(np.float64)),
    ]
    found = anchor_fit.suggest(square, sizes, levels)
    assert found["changes"] and found["coverage"]["0.7"] == 1.0
    (small,), (large,) = found["sizes"]
    assert large == pytest.approx(2 * small, abs=0.1)
    assert 20 < small < 25


def test_the_table_names_everything():
    found = run(
        make([[0, 0, 40, 40], [0, 0, 20, 80]], [1, 2], ignore=[1]),
        report=["x.xml: dropped cat (1, 1, 1, 1): no area"],
        anchors=LEVELS,
    )
    text = check.table(found, title="my set")
    for words in ("my set", "1 images, 2 boxes, 1 of them ignored", "suggested:"):
        assert words in text
    assert "problems: 1\n    x.xml: dropped cat" in text
    assert "problems: 1" in check.table(run(make([])))


# ------------------------------------------------------------------------- real photos


def test_bccd_has_two_bad_boxes(shared):
    root = str(shared / "data" / "bccd")
    shape = dict(short_side=300, max_side=400, canvas=(320, 416), decode_images=False)
    found = {
        split: check.check(voc.load(split=split, root=root), **shape)
        for split in ("train", "val", "test")
    }
    problems = [line for f in found.values() for line in f["problems"]]
    assert len(problems) == 2 and all("no area" in line for line in problems)
    assert sum(f["boxes"] for f in found.values()) == 4888 - 2


def test_coco_mini_has_its_crowds(shared):
    root = str(shared / "data" / "coco_mini")
    shape = dict(short_side=600, max_side=800, canvas=(608, 800), decode_images=False)
    found = [
        check.check(coco.load(split=split, root=root), **shape)
        for split in ("train2017", "val2017")
    ]
    assert [(f["boxes"], f["ignored"]) for f in found] == [(739, 8), (624, 5)]
    assert all(not f["problems"] for f in found)


# ---------------------------------------------------------- what is added to the check


def problems(*examples, **options):
    return " ".join(run(*examples, decode_images=True, **options)["problems"])


def test_boxes_within_one_pixel_are_taken_for_normalised_ones():
    assert "normalised" in problems(make([[0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]]))
    assert "normalised" not in problems(make([[0.1, 0.2, 0.8, 0.9], [0, 0, 9, 9]]))
    assert "normalised" not in problems(make([]))


def test_twelve_bits_in_a_file_of_sixteen(tmp_path):
    path = str(tmp_path / "deep.png")
    cv2.imwrite(path, np.linspace(0, 3000, 9600).reshape(80, 120).astype(np.uint16))
    one = make([[1, 1, 90, 70]], image=path)
    assert "use 12 bits (at most 3000)" in problems(one)
    assert "data.pixel_range=(0, 4095)" in problems(one)
    assert problems(one, pixel_range=(0, 4095)) == ""
    cv2.imwrite(path, np.full((80, 120), 60_000, np.uint16))
    assert problems(one) == ""


def test_tiny_objects_and_cut_pictures_are_notes(tmp_path):
    path = tmp_path / "cut.jpg"
    cv2.imwrite(str(path), np.zeros((80, 120, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-2])
    tiny = make([[0, 0, 7, 40], [0, 0, 40, 40]], image=str(path))
    found = run(tiny, cut_short="accept")
    notes = " ".join(found["notes"])
    assert found["problems"] == [] and found["tiny"] == 1
    assert "1 objects have a side below 4 pixels" in notes
    assert "1 pictures are cut short" in notes and "cut.jpg" in notes
    assert "data.cut_short='accept'" in run(tiny)["unreadable"][0]


def test_an_example_that_is_refused_as_it_is_drawn_is_a_problem():
    valid = Source([make([[1, 1, 9, 9]])], ("a", "b"), valid=True)
    bad = make([[1, 1, 9, 9]], [3])
    with pytest.raises(ValueError, match="class 3"):
        check.check(Source([bad], ("a", "b")), **SHAPE)
    assert check.check(valid, **SHAPE)["problems"] == []


def test_the_same_picture_under_another_name(tmp_path):
    def picture(name, level):
        cv2.imwrite(str(tmp_path / name), np.full((80, 120, 3), level, np.uint8))
        return make([[1, 1, 9, 9]], image=str(tmp_path / name))

    first = Source([picture("a.png", 1), picture("b.png", 2)], ("a", "b"))
    second = Source([picture("c.png", 2), picture("d.png", 3)], ("a", "b"))
    assert check.same_pictures(first, second) == [
        (str(tmp_path / "b.png"), str(tmp_path / "c.png"))
    ]
    arrays = Source([make([])], ("a", "b"))
    assert len(check.same_pictures(arrays, arrays)) == 1
    gone = Source([make([], image=str(tmp_path / "none.png"))], ("a", "b"))
    assert check.same_pictures(gone, gone) == []


def test_no_suggestion_reaches_fewer_objects_at_070(rng):
    for _ in range(5):
        boxes = random_boxes(rng, 60, (64, 96))
        sizes = np.tile([64, 96], (60, 1))
        found = anchor_fit.suggest(boxes, sizes, LEVELS)
        before = anchor_fit.coverage(boxes, sizes, LEVELS)["all"]["0.7"]
        assert found["coverage"]["0.7"] >= before
