"""VOC folders: layouts, coordinates, and what is refused."""

import cv2
import numpy as np
import pytest

from frcnn_jax.data.sources import coco, voc


def xml(*objects, size=(40, 60)):
    """objects: (name, xmin, ymin, xmax, ymax[, difficult])."""
    h, w = size
    body = "".join(
        f"<object><name>{name}</name><difficult>{(rest or [0])[0]}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2, *rest in objects
    )
    return (
        f"<annotation><size><width>{w}</width><height>{h}</height></size>"
        f"{body}</annotation>"
    )


def make(folder, annotations, split="train", suffix=".png"):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        cv2.imwrite(f"{folder}/JPEGImages/{name}{suffix}", np.zeros((40, 60, 3)))
    (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(annotations) + "\n")
    return str(folder)


def test_boxes_classes_and_difficult(tmp_path):
    root = make(
        tmp_path,
        {
            "b": xml(("dog", 1, 1, 60, 40), ("cat", 11, 21.5, 30, 35, 1)),
            "a": xml(("ant", 5, 6, 7, 8)),
            "none": xml(),
        },
    )
    source = voc.load(split="train", root=root)
    assert source.classes == ("ant", "cat", "dog")
    assert source.category_ids == (1, 2, 3)
    assert [e.image_id for e in source] == ["b", "a", "none"]
    first = source[0]
    # One-based inclusive to continuous: 60 pixels wide means 0 to 60.
    np.testing.assert_array_equal(first.boxes, [[0, 0, 60, 40], [10, 20.5, 30, 35]])
    assert first.boxes.dtype == np.float32
    assert first.classes.tolist() == [3, 2]
    assert first.ignore.tolist() == [False, True]
    assert first.size == (40, 60)
    assert source[2].boxes.shape == (0, 4) and source[2].classes.shape == (0,)
    assert source.report == []


def test_classes_are_collected_from_every_file_not_the_split_alone(tmp_path):
    root = make(tmp_path, {"a": xml(("zebra", 1, 2, 3, 4))}, split="val")
    make(tmp_path, {"b": xml(("ant", 1, 2, 3, 4))}, split="train")
    for split in ("train", "val"):
        assert voc.load(split=split, root=root).classes == ("ant", "zebra")


def test_classes_given(tmp_path):
    root = make(tmp_path, {"a": xml(("dog", 1, 2, 3, 4))})
    source = voc.load(split="train", root=root, classes=["dog", "cat"])
    assert source.classes == ("dog", "cat") and source[0].classes.tolist() == [1]
    twenty = voc.load(split="train", root=root, classes="voc")
    assert len(twenty.classes) == 20 and twenty[0].classes.tolist() == [12]
    with pytest.raises(ValueError, match="data.classes='coco'"):
        voc.load(split="train", root=root, classes="coco")


def test_an_unknown_class_names_class_file_known_and_cure(tmp_path):
    root = make(tmp_path, {"a": xml(("dgo", 1, 2, 3, 4))})
    with pytest.raises(ValueError, match=r"a\.xml.*'dgo'.*dog, cat.*data\.classes"):
        voc.load(split="train", root=root, classes=("dog", "cat"))


def test_degenerate_boxes_are_dropped_by_name(tmp_path):
    root = make(
        tmp_path,
        {
            "a": xml(
                ("dog", 9, 5, 9, 9),  # equal corners: a click
                ("dog", 9, 9, 5, 5),
                ("dog", "nan", 1, 5, 5),
                ("dog", 70, 1, 80, 5),
                ("dog", 0, 1, 61, 5),
                ("dog", 2, 2, 3, 3),
            )
        },
    )
    source = voc.load(split="train", root=root)
    np.testing.assert_array_equal(source[0].boxes, [[0, 0, 60, 5], [1, 1, 3, 3]])
    assert len(source[0].classes) == len(source[0].ignore) == 2
    assert source.report == [
        "a.xml: dropped dog (9, 5, 9, 9): no area",
        "a.xml: dropped dog (9, 9, 5, 5): no area",
        "a.xml: dropped dog (nan, 1, 5, 5): not finite",
        "a.xml: dropped dog (70, 1, 80, 5): outside the image of 60x40",
        "a.xml: clipped 1 box to the image of 60x40",
    ]


@pytest.mark.parametrize("inside", ["VOCdevkit", "."])
def test_years_joined(tmp_path, inside):
    devkit = tmp_path / inside
    make(devkit / "VOC2007", {"000001": xml(("dog", 1, 2, 3, 4))}, "trainval")
    make(devkit / "VOC2007", {"000002": xml(("cat", 1, 2, 3, 4))}, "test")
    make(devkit / "VOC2012", {"2012_1": xml(("cat", 1, 2, 3, 4))}, "trainval")
    source = voc.load(split="2007_trainval+2012_trainval", root=str(tmp_path))
    assert [e.image_id for e in source] == ["000001", "2012_1"]
    assert source.classes == ("cat", "dog")
    assert [e.image_id for e in voc.load(split="2007_test", root=str(tmp_path))] == [
        "000002"
    ]
    with pytest.raises(FileNotFoundError, match="name the year"):
        voc.load(split="trainval", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="VOC2010"):
        voc.load(split="2010_trainval", root=str(tmp_path))


def test_a_single_year_needs_no_name_and_no_image_comes_twice(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    make(folder, {"1": xml(), "2": xml()}, "train")
    make(folder, {"2": xml(), "3": xml()}, "val")
    source = voc.load(split="train+val", root=str(tmp_path))
    assert [e.image_id for e in source] == ["1", "2", "3"]


def test_class_wise_lists_and_other_image_formats(tmp_path):
    root = make(tmp_path, {"a": xml()}, suffix=".jpg")
    (tmp_path / "ImageSets/Main/dog_train.txt").write_text("a -1\n\n")
    source = voc.load(split="dog_train", root=root, classes="voc")
    assert str(source[0].image).endswith("a.jpg")


def test_missing_files_are_named(tmp_path):
    root = make(tmp_path, {"a": xml()})
    with pytest.raises(FileNotFoundError, match="test.txt; there are: train"):
        voc.load(split="test", root=root)
    (tmp_path / "JPEGImages/a.png").unlink()
    with pytest.raises(FileNotFoundError, match="no image .*a.jpg"):
        voc.load(split="train", root=root)
    (tmp_path / "Annotations/a.xml").unlink()
    with pytest.raises(FileNotFoundError, match="no annotation file .*a.xml"):
        voc.load(split="train", root=root)
    with pytest.raises(FileNotFoundError, match="data.root"):
        voc.load(split="train", root=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="data.root is empty"):
        voc.load(split="train")


SIZE = "<size><width>{}</width><height>3</height></size>"


@pytest.mark.parametrize(
    "text, why",
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "entities"),
        ("<annotation><object>", "no element found"),
        ("<annotation><object><name>dog</name></object></annotation>", "bndbox/xmin"),
        (
            xml(("dog", "one", 2, 3, 4)),
            "object 1 has bndbox/xmin 'one', expected a number: correct",
        ),
        (xml((" ", 1, 2, 3, 4)), "object 1 has no name"),
        ("", "no element found"),
        (f"<annotation>{SIZE.format('inf')}</annotation>", "the image has size/width"),
        (f"<annotation>{SIZE.format('wide')}</annotation>", "size/width 'wide'"),
    ],
)
def test_unreadable_annotations_are_named(tmp_path, text, why):
    root = make(tmp_path, {"a": text})
    with pytest.raises(ValueError, match=f"a.xml: .*{why}"):
        voc.load(split="train", root=root)


def test_other_encodings_cannot_smuggle_entities(tmp_path):
    root = make(tmp_path, {"a": xml()})
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a []><annotation/>'
    (tmp_path / "Annotations/a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="a.xml"):
        voc.load(split="train", root=root)


def test_sizes_left_out_come_from_the_image(tmp_path):
    root = make(tmp_path, {"a": xml(("dog", 1, 1, 99, 99), size=(0, 0))})
    source = voc.load(split="train", root=root)
    assert source[0].size == (40, 60)
    np.testing.assert_array_equal(source[0].boxes, [[0, 0, 60, 40]])


def test_as_coco(tmp_path):
    root = make(tmp_path, {"b": xml(("dog", 11, 11, 20, 30, 1)), "a": xml()})
    found = coco.to_coco(voc.load(split="train", root=root))
    assert found["images"] == [
        {"id": 1, "file_name": "b.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "a.png", "width": 60, "height": 40},
    ]
    (annotation,) = found["annotations"]
    assert annotation["bbox"] == [10, 10, 10, 20] and annotation["area"] == 200
    assert annotation["iscrowd"] == 1 and annotation["image_id"] == 1


def test_bccd_loses_its_two_degenerate_boxes(shared):
    root = str(shared / "data" / "bccd")
    splits = {s: voc.load(split=s, root=root) for s in ("train", "val", "test")}
    assert [len(s) for s in splits.values()] == [205, 87, 72]
    assert all(s.classes == ("Platelets", "RBC", "WBC") for s in splits.values())
    lines = [line for s in splits.values() for line in s.report]
    assert sorted(lines) == [
        "BloodImage_00338.xml: dropped RBC (504, 337, 504, 337): no area",
        "BloodImage_00343.xml: dropped RBC (181, 329, 181, 329): no area",
    ]
    count = sum(len(e.boxes) for s in splits.values() for e in s)
    assert count == 4888 - 2
