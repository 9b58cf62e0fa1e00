"""What was found in each image, without padding, and for other tools."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from frcnn_jax.data.images import save_image
from frcnn_jax.evaluation import files
from frcnn_jax.records import records
from frcnn_jax.types import Detections

ABOUT = types.SimpleNamespace(classes=("cat", "dog"), category_ids=(7, 3))
FOUND = Detections(
    boxes=np.float32(
        [[[1, 2, 11, 22], [0, 0, 5, 5], [np.nan] * 4], [[np.nan] * 4] * 3]
    ),
    scores=np.float32([[0.9, 0.4, np.nan], [np.nan] * 3]),
    classes=np.int32([[2, 1, 0], [0, 0, 0]]),
    valid=np.array([[True, True, False], [False] * 3]),
)
IMAGES = [np.zeros((30, 40, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]


def test_padded_slots_are_left_out():
    first, second = records(FOUND, IMAGES, ABOUT)
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 22], [0, 0, 5, 5]])
    assert first.scores.tolist() == pytest.approx([0.9, 0.4])
    assert first.class_names == ("dog", "cat") and first.classes.tolist() == [2, 1]
    assert first.category_ids.tolist() == [3, 7]
    assert (first.size, first.name) == ((30, 40), "")
    assert second.boxes.shape == (0, 4) and second.class_names == ()
    assert second.to_coco(2) == []
    (best, _) = records(FOUND, IMAGES, ABOUT, score=0.5)
    assert best.class_names == ("dog",)


def test_coco_entries_are_those_of_predict():
    first, _ = records(FOUND, IMAGES, ABOUT)
    one = Detections(*(np.asarray(x[0]) for x in FOUND))
    expected = files.to_results(one, 5, (30, 40), (30, 40), ABOUT.category_ids)
    assert first.to_coco(5) == expected
    assert json.dumps(first.to_coco(5))
    assert first.to_coco("a")[0]["bbox"] == [1.0, 2.0, 10.0, 20.0]


def test_pictures_have_the_boxes(tmp_path):
    first, second = records(FOUND, IMAGES, ABOUT)
    drawn = first.plot(IMAGES[0], min_side=0)
    assert drawn.shape == (30, 40, 3) and drawn.any()
    assert not second.plot(IMAGES[1], min_side=0).any()
    save_image(tmp_path / "a.png", IMAGES[0])
    (named, _) = records(FOUND, [tmp_path / "a.png", IMAGES[1]], ABOUT)
    assert named.size == (30, 40) and named.name == str(tmp_path / "a.png")
    np.testing.assert_array_equal(named.plot(min_side=0), drawn)
    with pytest.raises(ValueError, match=r"image is \(10, 10\), the record's is"):
        first.plot(IMAGES[1])


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="1 images, but detections of 2"):
        records(FOUND, IMAGES[:1], ABOUT)


def test_the_module_imports_nothing_of_the_tools():
    code = (
        "import sys, frcnn_jax.records; "
        "print([m for m in ('supervision', 'cv2', 'flax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
