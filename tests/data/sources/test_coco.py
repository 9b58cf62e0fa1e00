"""COCO instances files: reading, refusing, and writing any source as one."""

import json

import cv2
import numpy as np
import pytest

from frcnn_jax.data import source
from frcnn_jax.data.sources import coco


def instances():
    return {
        "images": [
            {"id": 30, "file_name": "c.png", "width": 60, "height": 40},
            {"id": 10, "file_name": "a.png", "width": 60, "height": 40},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 10,
                "category_id": 90,
                "bbox": [1.5, 2, 10, 20],
                "area": 77.5,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 10,
                "category_id": 3,
                "bbox": [0, 0, 60, 40],
                "area": 1,
                "iscrowd": 1,
            },
        ],
        "categories": [{"id": 90, "name": "yak"}, {"id": 3, "name": "zebra"}],
    }


def make(root, found):
    (root / "annotations").mkdir()
    (root / "annotations/instances_val.json").write_text(json.dumps(found))
    (root / "val").mkdir()
    for entry in found.get("images", ()):
        if "file_name" in entry:
            cv2.imwrite(f"{root}/val/{entry['file_name']}", np.zeros((40, 60, 3)))
    return dict(split="val", root=str(root))


def test_gaps_in_category_ids_crowds_and_empty_images(tmp_path):
    s = coco.load(**make(tmp_path, instances()))
    assert s.classes == ("zebra", "yak") and s.category_ids == (3, 90)
    assert [e.image_id for e in s] == [30, 10]
    assert len(s[0].boxes) == len(s[0].classes) == len(s[0].ignore) == 0
    np.testing.assert_array_equal(s[1].boxes, [[1.5, 2, 11.5, 22], [0, 0, 60, 40]])
    assert s[1].classes.tolist() == [2, 1]
    assert s[1].ignore.tolist() == [False, True]
    assert s[1].size == (40, 60)
    assert s.report == []


def test_round_trip(tmp_path):
    found = instances()
    again = coco.to_coco(coco.load(**make(tmp_path, found)))
    assert again["images"] == found["images"]
    assert again["annotations"] == found["annotations"]
    assert again["categories"] == sorted(found["categories"], key=lambda c: c["id"])
    json.dumps(again)


def test_other_folders(tmp_path):
    make(tmp_path, instances())
    (tmp_path / "val").rename(tmp_path / "pictures")
    (tmp_path / "annotations/instances_val.json").rename(tmp_path / "all.json")
    s = coco.load(
        split="val", root=str(tmp_path), annotations="all.json", images="pictures"
    )
    assert len(s) == 2


def test_bad_boxes_are_reported_with_their_annotation(tmp_path):
    found = instances()
    box = {"image_id": 30, "category_id": 3}
    found["annotations"] += [
        {"id": 3, **box, "bbox": [5, 5, 0, 9]},
        {"id": 4, **box, "bbox": [5, 5, 9, -1]},
        {"id": 5, **box, "bbox": [5, float("nan"), 9, 9]},
        {"id": 6, **box, "bbox": [61, 5, 9, 9]},
        {"id": 7, **box, "bbox": [50, 30, 20, 20]},
    ]
    s = coco.load(**make(tmp_path, found))
    np.testing.assert_array_equal(s[0].boxes, [[50, 30, 60, 40]])
    assert s[0].area is not None and s[0].area.tolist() == [100]
    assert s.report == [
        "c.png: dropped annotation 3, zebra [5, 5, 0, 9]: no area",
        "c.png: dropped annotation 4, zebra [5, 5, 9, -1]: no area",
        "c.png: dropped annotation 5, zebra [5, nan, 9, 9]: not finite",
        "c.png: dropped annotation 6, zebra [61, 5, 9, 9]: outside the image of 60x40",
        "c.png: clipped 1 box to the image of 60x40",
    ]


def change(**fields):
    return lambda found: found["annotations"][0].update(fields)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (change(category_id=4), r"annotation 1 has category_id 4.*3 zebra, 90 yak"),
        (change(image_id=11), "annotation 1 has image_id 11, which is not in images"),
        (change(bbox=[1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\], expected"),
        (change(bbox=None), "annotation 1 has bbox None"),
        (change(bbox=["1", 2, 3, 4]), "annotation 1 has bbox"),
        (
            change(category_id=[1]),
            r"annotation 1 has category_id \[1\], expected an int",
        ),
        (
            change(category_id=True),
            "annotation 1 has category_id True, expected an int",
        ),
        (change(image_id={}), "annotation 1 has image_id {}, expected an integer or a"),
        (change(area="x"), "annotation 1 has area 'x', expected a finite number"),
        (change(iscrowd="0"), "annotation 1 has iscrowd '0', expected 0 or 1"),
        (change(id=[7], area="x"), r"annotation \[7\] has area 'x'"),
        (
            lambda f: f["annotations"].append("dog"),
            "annotation number 3 is 'dog', expected an object with category_id",
        ),
        (
            lambda f: f["annotations"].append({"image_id": 1.5}),
            "annotation number 3 has image_id 1.5, expected an integer or a string",
        ),
        (
            lambda f: f["images"][1].update(height="40"),
            "image 10 has height '40', expected an integer",
        ),
        (
            lambda f: f["images"][1].update(file_name=3),
            "image 10 has file_name 3, expected a string",
        ),
        (
            lambda f: f["images"][0].update(id=[1]),
            r"image \[1\] has id \[1\], expected",
        ),
        (
            lambda f: f["categories"][0].update(id="90"),
            "category 90 has id '90', expected an integer",
        ),
        (lambda f: f["categories"].append(3), "category number 3 is 3, expected"),
        (lambda f: f.pop("categories"), "has no list 'categories'"),
        (
            lambda f: f["images"][0].pop("file_name"),
            "image number 1 has no 'file_name', but .*: expected id and",
        ),
        (lambda f: f["images"][0].update(id=10), "image id 10 occurs more than once"),
        (lambda f: f["categories"][0].update(id=3), "category id 3 occurs more"),
    ],
)
def test_inconsistent_files_are_errors(tmp_path, spoil, message):
    found = instances()
    where = make(tmp_path, found)
    spoil(found)
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"instances_val.json.*{message}"):
        coco.load(**where)


def test_missing_files_are_named(tmp_path):
    where = make(tmp_path, instances())
    (tmp_path / "val/a.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="1 of 2 images .* a.png: set data.root or"
    ):
        coco.load(**where)
    with pytest.raises(FileNotFoundError, match="instances_test.json.*data.root"):
        coco.load(split="test", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no image folder .*nowhere"):
        coco.load(**where, images="nowhere")
    (tmp_path / "annotations/instances_val.json").write_text("{")
    with pytest.raises(ValueError, match="instances_val.json is not JSON"):
        coco.load(**where)
    (tmp_path / "annotations/instances_val.json").write_text("[1]")
    with pytest.raises(ValueError, match="has no list 'images'"):
        coco.load(**where)


def test_sizes_left_out_come_from_the_image(tmp_path):
    found = instances()
    for entry in found["images"]:
        del entry["width"], entry["height"]
    s = coco.load(**make(tmp_path, found))
    assert [e.size for e in s] == [(40, 60)] * 2


def test_arrays_as_coco():
    image = np.zeros((8, 9, 3), np.uint8)
    boxes, one = np.float32([[1, 2, 4, 7]]), np.ones(1, np.int32)
    example = source.Example(image, "mine", boxes, one, np.zeros(1, bool))
    found = coco.to_coco(source.Source([example], ("dog",), (18,)))
    assert found["images"] == [
        {"id": 1, "file_name": "000001.png", "width": 9, "height": 8}
    ]
    assert found["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 18,
            "bbox": [1, 2, 3, 5],
            "area": 15,
            "iscrowd": 0,
        }
    ]
    assert found["categories"] == [{"id": 18, "name": "dog"}]


def test_coco_mini(shared):
    root = str(shared / "data" / "coco_mini")
    train = coco.load(split="train2017", root=root)
    val = coco.load(split="val2017", root=root)
    assert (len(train), len(val)) == (80, 79)
    assert len(train.classes) == 80 and train.category_ids[-1] == 90
    assert train.classes == val.classes
    assert sum(len(e.boxes) for e in train) == 739
    assert sum(len(e.boxes) for e in val) == 624
    assert sum(e.ignore.sum() for e in train) == 8
    assert sum(e.ignore.sum() for e in val) == 5
    assert train.report == val.report == []


def test_deeppcb(shared):
    root = str(shared / "data" / "deeppcb")
    s = coco.load(split="test", root=root)
    assert len(s) == 500 and len(s.classes) == 6 and s.report == []


def test_whole_numbers_written_as_floats_are_ids(tmp_path):
    found = instances()
    found["images"][1]["id"] = 10.0
    found["images"][1]["width"] = 60.0
    found["annotations"][0].update(image_id=10.0, category_id=90.0)
    found["categories"][0]["id"] = 90.0
    s = coco.load(**make(tmp_path, found))
    assert s.category_ids == (3, 90) and [e.image_id for e in s] == [30, 10]
    assert all(type(i) is int for i in (*s.category_ids, s[1].image_id))
    assert s[1].classes.tolist() == [2, 1] and s[1].size == (40, 60)


@pytest.mark.parametrize("area", [-1, -1.0, None])
def test_an_area_that_is_not_known_is_the_boxs(tmp_path, area):
    found = instances()
    found["annotations"][0]["area"] = area
    s = coco.load(**make(tmp_path, found))
    assert s[1].area.tolist() == [200, 1]
    said = ["a.png: 1 negative areas, taken as the boxes'"]
    assert s.report == ([] if area is None else said)


def test_an_area_that_is_no_number_is_an_error(tmp_path):
    found = instances()
    found["annotations"][0]["area"] = float("nan")  # json writes NaN
    with pytest.raises(
        ValueError, match="instances_val.json: annotation 1 has area nan"
    ):
        coco.load(**make(tmp_path, found))


@pytest.mark.parametrize(
    "given, message",
    [
        ("10", "image_id '10', which .* they have 10, so write both as int"),
        (11, "image_id 11, which is not in images: add the image"),
        ("x", "image_id 'x', which is not in images: add the image"),
    ],
)
def test_ids_of_another_type_are_shown_in_quotes(tmp_path, given, message):
    found = instances()
    found["annotations"][0]["image_id"] = given
    with pytest.raises(ValueError, match=message):
        coco.load(**make(tmp_path, found))
