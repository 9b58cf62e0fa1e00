"""YOLO folders: both layouts, names, polygons, and what is refused."""

import cv2
import numpy as np
import pytest

from frcnn_jax.data.sources import yolo
from frcnn_jax.data.validate import validate


def make(folder, labels, *, layout="images/train", names="cat\ndog\n"):
    pictures = folder / layout
    texts = folder / layout.replace("images", "labels")
    for path in (pictures, texts):
        path.mkdir(parents=True)
    for name, text in labels.items():
        cv2.imwrite(str(pictures / f"{name}.png"), np.zeros((40, 80, 3), np.uint8))
        if text is not None:
            (texts / f"{name}.txt").write_text(text)
    (folder / "names.txt").write_text(names)
    return str(folder)


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_boxes_and_classes(tmp_path, layout):
    lines = "1 0.2 0.5 0.2 0.5\n\n0 0.5 0.5 1 1\n"
    root = make(tmp_path, {"b": "", "a": lines}, layout=layout)
    source = yolo.load(split="train", root=root)
    assert source.classes == ("cat", "dog")
    assert [e.image_id for e in source] == ["a", "b"]
    np.testing.assert_allclose(source[0].boxes, [[8, 10, 24, 30], [0, 0, 80, 40]])
    assert source[0].classes.tolist() == [2, 1]
    assert source[1].boxes.shape == (0, 4) and source[1].size == (40, 80)
    assert source.report == []


def test_two_images_of_one_stem_keep_their_suffixes_as_ids(tmp_path):
    root = make(tmp_path, {"1": "0 0.5 0.5 1 1\n", "2": ""})
    image = np.zeros((40, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "train" / "1.jpg"), image)
    source = validate(yolo.load(split="train", root=root))
    assert [e.image_id for e in source] == ["1.jpg", "1.png", "2"]
    assert [len(e.boxes) for e in source] == [1, 1, 0]  # one file of labels for both


def test_polygons_become_their_boxes(tmp_path):
    root = make(tmp_path, {"a": "0 0.1 0.25 0.3 0.25 0.2 0.75\n"})
    (example,) = yolo.load(split="train", root=root)
    np.testing.assert_allclose(example.boxes, [[8, 10, 24, 30]])


def test_images_without_a_file_are_empty_and_said(tmp_path):
    root = make(tmp_path, {"a": "0 .5 .5 .1 .1", "b": None})
    source = yolo.load(split="train", root=root)
    assert len(source[1].boxes) == 0
    assert source.report[0].startswith("1 of 2 images have no label file")


@pytest.mark.parametrize(
    "text", ["names: [ant, bee]", "nc: 2\nnames:\n  0: ant\n  1: bee"]
)
def test_names_of_a_yaml(tmp_path, text):
    root = make(tmp_path, {"a": ""})
    (tmp_path / "data.yaml").write_text(text)
    assert yolo.load(split="train", root=root).classes == ("ant", "bee")
    assert yolo.load(split="train", root=root, classes="names.txt").classes == (
        "cat",
        "dog",
    )
    assert yolo.load(split="train", root=root, classes=("x",)).classes == ("x",)


@pytest.mark.parametrize(
    "labels, options, message",
    [
        ({"a": "2 .5 .5 .1 .1"}, {}, r"a.txt, line 1: class 2, but there are 2 names"),
        ({"a": "0.5 .5 .5 .1 .1"}, {}, "class 0.5, but"),
        ({"a": "0 .5 .5 .1"}, {}, "4 numbers, expected a class and x, y"),
        ({"a": "0 .5 .5 .1 .1 .1"}, {}, "6 numbers, expected"),
        ({"a": "cat .5 .5 .1 .1"}, {}, "has more than numbers"),
        ({"a": "0 20 30 10 10"}, {}, "looks like pixels"),
        ({"a": None}, {}, "none of 1 images .* has a file in"),
        ({"a": ""}, dict(split="val"), "looked for .*images/val with .*labels/val"),
        ({"a": ""}, dict(classes="x.txt"), "no class names: none of x.txt"),
    ],
)
def test_mistakes_are_named(tmp_path, labels, options, message):
    root = make(tmp_path, labels)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        yolo.load(**(dict(split="train", root=root) | options))


def test_names_that_are_no_list(tmp_path):
    root = make(tmp_path, {"a": ""})
    (tmp_path / "data.yaml").write_text("names: {1: ant, 2: bee}")
    with pytest.raises(ValueError, match="expected a list of names"):
        yolo.load(split="train", root=root)
