"""What the border refuses, clips and lets pass, whoever wrote the source."""

import collections.abc
import sys
import time
import types
from typing import Any

import cv2
import numpy as np
import pytest

from frcnn_jax.data import pipeline
from frcnn_jax.data import validate as border
from frcnn_jax.data.source import Example, Mapped, Source, merge_duplicates, subset


def make(boxes=((1, 2, 9, 8),), classes=None, image_id=1, **changes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    example = Example(
        image=np.zeros((20, 30, 3), np.uint8),
        image_id=image_id,
        boxes=boxes,
        classes=np.array([1] * n if classes is None else classes, np.int32),
        ignore=np.zeros(n, bool),
        size=(20, 30),
    )
    return example._replace(**changes)


class Lazy(collections.abc.Sequence):
    """Examples that exist only when they are asked for."""

    def __init__(self, examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Lazy(self._examples[index])
        return self._examples[index]


def examples(source):
    return list(border.validate(source).examples)


BOTH = pytest.mark.parametrize("kind", [list, tuple, Lazy])


@BOTH
def test_what_is_right_passes_unchanged(kind):
    given = [
        make(image_id=1),
        make((), image_id="b"),
        make([[0, 0, 30, 20]] * 2, [1, 2], 3),
    ]
    source = Source(kind(given), ("cat", "dog"))
    found = examples(source)
    for a, b in zip(found, given, strict=True):
        assert a.image is b.image and (a.image_id, a.size) == (b.image_id, b.size)
        for key in ("boxes", "classes", "ignore"):
            x, y = getattr(a, key), getattr(b, key)
            assert x.dtype == y.dtype and np.array_equal(x, y)
    assert source.report == []
    valid = border.validate(source)
    assert (
        border.validate(valid) is valid
        and border.validate(subset(valid, slice(1, 2))).valid
    )


@pytest.mark.parametrize("kind", [list, tuple, None])
@pytest.mark.parametrize(
    "example, message",
    [
        (
            make(classes=[0]),
            "image 1: box 0 has class 0, expected 1..2: 0 is the background",
        ),
        (
            make(classes=[3]),
            "box 0 has class 3, expected 1..2: correct it, or add the name",
        ),
        (make(classes=[-1]), "box 0 has class -1"),
        (
            make(classes=[1.0])._replace(classes=np.array([1.5])),
            "classes of type float64",
        ),
        (make([[1, 1, 5, 5], [1, 2, np.nan, 8]]), "box 1 .*nan.* is not finite"),
        (make([[1, 2, np.inf, 8]]), "is not finite"),
        (
            make([[9, 2, 1, 8]], image_id="a"),
            "image 'a': box 0 .*ends before it begins",
        ),
        (make(area=np.array([np.nan], np.float32)), "box 0 has area nan: .*area=None"),
        (make(area=np.array([-1.0], np.float32)), "box 0 has area -1"),
        (make(area=np.ones(2, np.float32)), r"1 boxes but area of shape \(2,\)"),
        (make(ignore=np.zeros(0, bool)), r"1 boxes but ignore of shape \(0,\)"),
        (
            make(boxes=((1, 2, 9, 8),), classes=[1, 2]),
            r"1 boxes but classes of shape \(2,\)",
        ),
        (
            make()._replace(boxes=np.ones((1, 5), np.float32)),
            r"boxes of shape \(1, 5\)",
        ),
        (make()._replace(boxes=np.array(["a"])), "boxes of shape"),
        (
            make(image_id=9)._replace(boxes=[[1, 2], [3]]),
            r"image 9.*: boxes is \[\[1, 2\], \[3\]\], expected",
        ),
        (make(image_id=9)._replace(area=["x"]), r"image 9.*: area is \['x'\]"),
        (make(image=3), "an image of type int"),
        (make(image_id=1.5), "image 1.5: image_id is of type float"),
        (make(image_id=None), "image None.*: image_id is of type NoneType"),
        (make(size=(20, 30, 3)), r"has size \(20, 30, 3\)"),
    ],
)
def test_refused_with_the_image_named(kind, example, message):
    good = [make(image_id=7), make(image_id=8)]
    with pytest.raises(ValueError, match=message) as error:
        if kind:
            border.validate(Source(kind([*good, example]), ("cat", "dog")))
        else:  # as it is drawn
            border.check_example(example, num_classes=2)
    assert "\n" not in str(error.value)


def test_examples_made_on_demand_are_checked_as_they_are_drawn():
    valid = border.validate(Source(Lazy([make()]), ("a",)))
    assert isinstance(valid.examples, Mapped)
    with pytest.raises(ValueError, match="class 2, expected 1..1"):
        valid.examples.change(make(classes=[2]))


@BOTH
def test_boxes_are_clipped_dropped_and_named_as_the_sources_do(kind):
    boxes = [[-3, 2, 40, 25], [30, 2, 40, 8], [4, 4, 4, 9], [1, 1, 5, 5]]
    area = np.array([5, 6, 7, 8], np.float32)
    source = Source(kind([make(boxes, [1, 2, 1, 2], "x", area=area)]), ("a", "b"))
    (found,) = examples(source)
    assert found.boxes.tolist() == [[0, 2, 30, 20], [1, 1, 5, 5]]
    assert found.classes.tolist() == [1, 2] and found.area.tolist() == [5, 8]
    assert len(found.ignore) == 2
    assert source.report == [
        "x: dropped box 1, class 2 (30, 2, 40, 8): outside the image of 30x20",
        "x: dropped box 2, class 1 (4, 4, 4, 9): no area",
        "x: clipped 1 box to the image of 30x20",
    ]
    list(border.validate(source).examples)
    assert len(source.report) == 3  # said once, however often an example is drawn


@BOTH
def test_other_types_are_converted(kind, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    example = Example(
        image=tmp_path / "a.png",
        image_id=np.int64(5),
        boxes=[[1, 2, 33.0, 4]],
        classes=np.array([1]),
        ignore=[0],
    )
    source = Source(kind([example, make((), image_id=6)]), ("a",))
    found, _ = examples(source)
    assert found.image == str(tmp_path / "a.png") and type(found.image_id) is int
    assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int32
    assert found.ignore.dtype == bool and found.size == (20, 30)  # from the file
    assert found.boxes.tolist() == [[1, 2, 30, 4]]


def test_an_unreadable_image_is_left_for_when_it_is_used(tmp_path):
    example = make(image=str(tmp_path / "none.png"), size=None)
    (found,) = examples(Source([example], ("a",)))
    assert found.size is None and found.boxes.tolist() == [[1, 2, 9, 8]]


@pytest.mark.parametrize(
    "classes, ids, message",
    [
        (
            ("cat", "dog", "cat"),
            (),
            "2 classes have the name 'cat': .*merge_duplicates",
        ),
        (("cat", "dog"), (4, 4), "2 classes have the category id 4"),
        (("cat", ""), (), "class name ''"),
        (("cat", 7), (), "class name 7"),
        ((), (), "no classes"),
        (("cat",), ("1",), "category id '1'"),
    ],
)
def test_class_names(classes, ids, message):
    source = Source([make()], ("a",) * len(classes))
    object.__setattr__(source, "classes", classes)  # past the types, which tests check
    object.__setattr__(source, "category_ids", ids or tuple(range(len(classes))))
    with pytest.raises(ValueError, match=message):
        border.validate(source)


def test_repeats_fit():
    with pytest.raises(ValueError, match="1 examples but 2 repeats"):
        border.validate(Source([make()], ("a",), repeats=np.ones(2)))


def test_an_id_twice():
    twice = [make(image_id="a"), make(image_id=2), make(image_id="a")]
    with pytest.raises(ValueError, match="2 images have the id 'a', as .* 0 and 2"):
        border.validate(Source(twice, ("a",)))
    drawn = border.validate(Source(Lazy(twice), ("a",)))
    with pytest.raises(ValueError, match="2 images have the id 'a'"):
        border.check_evaluable(drawn, "val")
    border.validate(Source([make(image_id="2"), make(image_id=2)], ("a",)))


def test_what_the_roles_ask():
    ignored = make(ignore=np.ones(1, bool))
    for given in ([], [make(())], [ignored]):
        with pytest.raises(
            ValueError, match="data.train_split='x' has .*(no image|not one)"
        ):
            border.check_trainable(Source(given, ("a",)), "x")
    border.check_trainable(Source([make(()), make()], ("a",)), "x")
    border.check_evaluable(Source([make(())], ("a",)), "x")
    with pytest.raises(
        ValueError, match="data.eval_split='x' has no image: .*eval_split=''"
    ):
        border.check_evaluable(Source([], ("a",)), "x")


@BOTH
def test_merged_classes(kind):
    given = [make([[1, 1, 4, 4]] * 3, [1, 2, 3]), make((), image_id=2)]
    source = Source(kind(given), ("cat", "dog", "cat"), (10, 20, 30))
    merged = merge_duplicates(source)
    assert (merged.classes, merged.category_ids) == (("cat", "dog"), (10, 20))
    assert [e.classes.tolist() for e in examples(merged)] == [[1, 2, 1], []]
    assert (
        merged.report == ["merged 3 classes into 2"] and merged.report is source.report
    )
    assert isinstance(merged.examples, Mapped) == (kind is Lazy)
    bad = merge_duplicates(Source([make(classes=[0]), make(classes=[3])], ("a", "a")))
    assert [e.classes.tolist() for e in bad.examples] == [[0], [2]]  # for `validate`
    plain = Source(given, ("a", "b", "c"))
    assert merge_duplicates(plain) is plain


def test_a_large_set_is_checked_at_once():
    one = make([[1, 1, 9, 9]] * 7)
    source = Source([one._replace(image_id=i) for i in range(20_000)], ("a",))
    start = time.perf_counter()
    border.validate(source)
    assert time.perf_counter() - start < 5  # measured: 0.6 to 0.9 s for these 20,000


# ------------------------------------------------------------------------- the pipeline

SHAPE = dict(short_side=20, max_side=30, canvas=(20, 30), max_boxes=4)


@pytest.fixture
def lab(monkeypatch):
    """A module of a user's own whose `load` returns what the test puts there."""
    module: Any = types.ModuleType("my_lab.own")
    module.splits = {}
    module.load = lambda *, split: module.splits[split]
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    monkeypatch.setitem(sys.modules, "my_lab.own", module)
    return module


def build(**changes):
    settings = dict(batch_size=1, eval_batch_size=1, seed=0, threads=1, **SHAPE)
    settings |= dict(train_split="train", eval_split="val")
    return pipeline.build("my_lab.own", **(settings | changes))


BAD = [
    (dict(classes=[0]), "class 0, expected 1..2: 0 is the background"),
    (dict(boxes=[[1, 1, np.nan, 4]]), "is not finite"),
    (dict(area=np.array([np.nan], np.float32)), "area nan"),
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change, message", BAD)
def test_a_source_of_ones_own_is_checked_by_every_way_in(lab, split, change, message):
    lab.splits = {k: Source([make()], ("a", "b")) for k in ("train", "val")}
    build()
    lab.splits[split] = bad = Source([make(**change)], ("a", "b"))
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(ValueError, match=message):  # what check_dataset reads
        pipeline.split_of(dict(name="my_lab.own", **SHAPE), split)
    options = dict(batch_size=1, **SHAPE)
    with pytest.raises(ValueError, match=message):
        pipeline.train_dataset(bad, seed=0, **options)
    with pytest.raises(ValueError, match=message):
        pipeline.eval_dataset(bad, **options)


def test_examples_made_on_demand_are_clipped_on_their_way(lab):
    given = [
        make([[-5, 2, 12, 40], [40, 1, 50, 9]], [1, 2], image_id=i) for i in (1, 2)
    ]
    lab.splits = {k: Source(Lazy(given), ("a", "b")) for k in ("train", "val")}
    data = build()
    (batch, _) = data.eval_batches()
    assert batch.gt_boxes[0, 0].tolist() == [0, 2, 12, 20]
    assert batch.gt_valid[0].tolist() == [True, False, False, False]
    assert [e.boxes.tolist() for e in data.eval.examples] == [[[0, 2, 12, 20]]] * 2
    assert len(data.eval.report) == 4  # each image's two lines, once


def test_a_class_outside_of_the_list_is_met_as_it_is_drawn(lab):
    lab.splits = {
        "train": Source(Lazy([make()]), ("a",)),
        "val": Source([make()], ("a",)),
    }
    data = build()
    object.__setattr__(data.train.examples, "examples", Lazy([make(classes=[2])]))
    with pytest.raises(ValueError, match="class 2, expected 1..1"):
        next(data.train_batches())


def test_an_evaluation_split(lab):
    lab.splits = {"train": Source([make()], ("a",)), "val": Source([], ("a",))}
    with pytest.raises(ValueError, match="data.eval_split='val' has no image"):
        build()
    data = build(eval_split="")
    assert len(data.eval) == 0 and list(data.eval_batches()) == []
    assert data.eval.classes == ("a",) and next(data.train_batches()).valid.all()
    lab.splits["val"] = Source(Lazy([make(), make()]), ("a",))
    with pytest.raises(ValueError, match="2 images have the id 1"):
        build()


def test_classes_of_one_name(lab):
    for split in ("train", "val"):
        lab.splits[split] = Source([make(classes=[3])], ("a", "b", "a"), (5, 6, 7))
    with pytest.raises(
        ValueError, match="2 classes have the name 'a'.*merge_duplicates"
    ):
        build()
    data = build(merge_duplicates=True)
    assert (data.eval.classes, data.eval.category_ids) == (("a", "b"), (5, 6))
    assert next(data.train_batches()).gt_classes[0, 0] == 1
    found = pipeline.split_of(dict(name="my_lab.own", merge_duplicates=True), "val")
    assert found.classes == ("a", "b") and found.valid


@pytest.mark.parametrize(
    "other, message",
    [
        (("a", "c"), r"only 'train' has b; only 'val' has c\).*data.classes"),
        (("b", "a"), "in another order.*data.classes"),
        (("a",), r"only 'train' has b\)"),
    ],
)
def test_splits_of_other_classes(lab, other, message):
    lab.splits = {"train": Source([make()], ("a", "b")), "val": Source([make()], other)}
    with pytest.raises(ValueError, match=message):
        build()


def test_pictures_cut_short_are_taken_if_told_so_and_named(tmp_path, lab):
    for name in ("a", "b"):
        cv2.imwrite(f"{tmp_path}/{name}.jpg", np.full((20, 30, 3), 200, np.uint8))
    file = tmp_path / "b.jpg"
    file.write_bytes(file.read_bytes()[:-2])
    given = [
        make(image=f"{tmp_path}/{name}.jpg", image_id=name, size=None) for name in "ab"
    ]
    lab.splits = {k: Source(list(given), ("a",)) for k in ("train", "val")}
    with pytest.raises(ValueError, match=r"b.jpg .*data.cut_short='accept'"):
        list(build().eval_batches())
    data = build(cut_short="accept")
    batches = list(data.eval_batches())
    assert all(b.valid.all() for b in batches) and batches[1].image[0, 0, 0, 0] > 150
    assert data.eval.report == [f"{file}: cut short, taken as far as it goes"]
    with pytest.raises(ValueError, match="data.cut_short='yes': expected one of"):
        build(cut_short="yes")


def test_deep_images_by_a_stated_range(tmp_path, lab):
    deep = np.linspace(0, 4095, 600).reshape(20, 30).astype(np.uint16)
    cv2.imwrite(f"{tmp_path}/a.png", deep)
    one = make(image=f"{tmp_path}/a.png")
    lab.splits = {k: Source([one], ("a",)) for k in ("train", "val")}
    (dark,) = build().eval_batches()
    (bright,) = build(pixel_range=(0, 4095)).eval_batches()
    assert dark.image.max() == 15 and bright.image.max() == 255
    with pytest.raises(ValueError, match="data.pixel_range"):
        build(pixel_range=(5, 5))
