"""A list of dicts as a data set."""

import sys
import types

import cv2
import numpy as np
import pytest

from frcnn_jax.data import pipeline
from frcnn_jax.data.example import decode
from frcnn_jax.data.sources import dicts

IMAGE = np.zeros((40, 60, 3), np.uint8)


def one(**fields):
    return dict(image=IMAGE, boxes=[[1, 2, 30, 20]], labels=["cat"]) | fields


def test_arrays_files_and_bytes(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    data = (tmp_path / "a.png").read_bytes()
    source = dicts.from_dicts(
        [
            one(labels=["dog"], ignore=[True]),
            one(image="a.png", id=7),
            one(image=data, boxes=[], labels=[]),
        ],
        root=str(tmp_path),
    )
    assert source.classes == ("cat", "dog")
    assert [e.image_id for e in source] == [1, 7, 3]
    assert [e.size for e in source] == [(40, 60)] * 3
    assert source[0].classes.tolist() == [2] and source[0].ignore.tolist() == [True]
    np.testing.assert_array_equal(source[1].boxes, [[1, 2, 30, 20]])
    assert source[2].boxes.shape == (0, 4)
    for example in source:
        np.testing.assert_array_equal(decode(example), IMAGE)


def test_numbers_count_from_zero_and_conventions_convert():
    (example,) = dicts.from_dicts(
        [one(boxes=[[0.25, 0.5, 0.75, 1.0]], labels=[1])],
        classes=("a", "b"),
        convention="yxyx_normalized",
    )
    assert example.classes.tolist() == [2]
    np.testing.assert_array_equal(example.boxes, [[30, 10, 60, 30]])


def test_bad_boxes_are_reported_by_name():
    source = dicts.from_dicts([one(id="x", boxes=[[5, 5, 5, 9]])])
    assert source.report == ["x: dropped cat (5, 5, 5, 9): no area"]
    assert source[0].boxes.shape == (0, 4) and source[0].classes.shape == (0,)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(box=[1]), "unknown key 'box', expected boxes, .*: rename it"),
        (dict(image=None), "image is None, expected a path"),
        (dict(labels=["cat", "cat"]), r"shape \(1, 4\), 2 labels"),
        (dict(labels=["cow"]), "label 'cow' is not one of cat, dog"),
        (dict(labels=[2]), "label 2 is not one of cat, dog"),
        (dict(image="absent.png"), "no image file .*absent.png"),
        (dict(id="x", boxes=[[1, 2, 3, 4], [5]]), r"x: boxes is .*expected \[n, 4\]"),
        (dict(id="x", boxes=[["a", 2, 3, 4]]), r"x: boxes is .*'a'"),
        (dict(id="x", labels=3), "x: labels is 3, expected a list"),
        (dict(id="x", labels="cat"), "x: labels is 'cat', expected a list"),
        (dict(labels=[None]), "label None is not one of"),
        (dict(labels=[0.5]), "label 0.5 is not one of"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dicts.from_dicts([one(**fields)], classes=("cat", "dog"))


def test_an_entry_that_is_no_dict():
    with pytest.raises(ValueError, match="entry 2 is 'a.png', expected a dict with"):
        dicts.from_dicts([one(), "a.png"], classes=("cat",))  # pyright: ignore


def test_a_dotted_path_to_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_zoo", types.ModuleType("my_zoo"))
    with pytest.raises(ValueError, match="my_zoo.DATE': my_zoo .* has no 'DATE'"):
        dicts.load(split="train", dataset="my_zoo.DATE")


def test_numbers_without_names():
    with pytest.raises(ValueError, match="^x: label 0 is a number: name them"):
        dicts.from_dicts([one(id="x", labels=[0])])


@pytest.mark.parametrize("kind", ["mapping", "function", "object"])
def test_through_the_pipeline(monkeypatch, kind):
    splits = dict(train=[one(), one(labels=["ant"])], val=[one()])
    module = types.ModuleType("my_zoo")
    module.DATA = splits if kind != "function" else lambda split: splits[split]
    monkeypatch.setitem(sys.modules, "my_zoo", module)
    settings = dict(batch_size=2, eval_batch_size=1, seed=0, classes=("ant", "cat"))
    settings |= dict(train_split="train", eval_split="val")
    settings |= dict(short_side=20, max_side=30, canvas=(20, 30))
    if kind == "object":
        data = pipeline.build("dicts", dataset=splits, **settings)
    else:
        data = pipeline.build("dicts:my_zoo.DATA", **settings)
    batch = next(data.train_batches())
    assert sorted(batch.gt_classes[:, 0]) == [1, 2]
    assert len(data.eval) == 1


def test_names_of_a_mapping_are_those_of_all_splits():
    splits = dict(train=[one()], val=[one(labels=["ant"])])
    assert dicts.load(split="train", dataset=splits).classes == ("ant", "cat")
    with pytest.raises(ValueError, match="no split 'test': there are train, val"):
        dicts.load(split="test", dataset=splits)
    with pytest.raises(ValueError, match="give the dotted path"):
        dicts.load(split="train", dataset="zoo")
