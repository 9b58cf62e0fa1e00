"""Detection and annotation files: round trips, and what each error says."""

import json
import os
import stat

import numpy as np
import pytest

from frcnn_jax.evaluation import files
from frcnn_jax.types import Detections

TRUTH = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 12, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
}
BOX = TRUTH["annotations"][0]
GOOD = {"image_id": 7, "category_id": 18, "bbox": [1.0, 2.0, 3.0, 4.5], "score": 0.25}


# ------------------------------------------------------------------ reading, writing


def test_files_round_trip(tmp_path):
    files.write_detections(tmp_path / "deep/er/found.json", [GOOD, GOOD], TRUTH)
    path = str(tmp_path / "deep/er/found.json")
    assert files.read_detections(path, TRUTH) == [GOOD, GOOD]
    files.write_annotations(tmp_path / "truth.json", TRUTH)
    assert files.read_annotations(tmp_path / "truth.json") == TRUTH
    files.write_detections(path, [])
    assert files.read_detections(path) == []


def test_write_takes_numpy_values(tmp_path):
    entry = {
        "image_id": np.int64(7),
        "category_id": np.int32(18),
        "bbox": np.array([1, 2, 3, 4.5], np.float32),
        "score": np.float32(0.25),
    }
    files.write_detections(tmp_path / "found.json", [entry], TRUTH)
    assert files.read_detections(tmp_path / "found.json", TRUTH) == [GOOD]


def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    files.write_detections(path, [GOOD])
    with pytest.raises(ValueError, match="score"):
        files.write_detections(path, [GOOD | {"score": float("nan")}])
    with pytest.raises(TypeError, match="cannot write"):
        files.write_detections(path, [GOOD | {"note": object()}])

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_detections(path, [])
    assert files.read_detections(path) == [GOOD]
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays


def test_written_file_has_ordinary_permissions(tmp_path):
    files.write_detections(tmp_path / "found.json", [])
    (tmp_path / "other.json").write_text("[]")
    modes = [stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("content", [b"", b'[{"image_id": 7', b"\xff\xfe\x00"])
def test_read_broken_json_names_file_and_cure(tmp_path, content):
    (tmp_path / "found.json").write_bytes(content)
    for read in (files.read_detections, files.read_annotations):
        with pytest.raises(ValueError, match="found.json: not valid JSON.*again"):
            read(tmp_path / "found.json")


def test_read_missing_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json: no such file"):
        files.read_detections(tmp_path / "gone.json")


def test_read_names_file_and_entry(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps([GOOD, GOOD | {"bbox": None}]))
    with pytest.raises(ValueError, match=r"found\.json\[1\]: bbox should be \[x, y,"):
        files.read_detections(tmp_path / "found.json")


# ----------------------------------------------------------------------- detections


@pytest.mark.parametrize(
    "change, match",
    [
        ({"image_id": 8}, r"\[1\]: image_id 8 is not in the annotations.*same split"),
        ({"image_id": "7"}, "image_id '7' is not.*have 7, so write image_id as int"),
        ({"image_id": "x7"}, "image_id 'x7' is not in the annotations"),
        ({"image_id": [7]}, "image_id should be an int or str, found a list of 1"),
        ({"image_id": None}, "image_id should be an int or str, found nothing"),
        ({"category_id": 1}, "category_id 1 is not in the annotations"),
        ({"bbox": [1, 2, 3]}, r"bbox should be \[x, y, width, height\].*list of 3"),
        ({"bbox": "1234"}, "bbox should be .* found str '1234'"),
        ({"bbox": [1, 2, float("nan"), 4]}, "four finite numbers.*nan.*drop the box"),
        ({"bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "width and height >= 0, found .1, 2, -3, 4"),
        ({"bbox": [1, 2, "3", 4]}, "four finite numbers"),
        ({"score": float("nan")}, "score should be a finite number, found nan"),
        ({"score": "high"}, "score should be a finite number, found 'high'"),
        ({"score": None}, "score should be a finite number"),
    ],
)
def test_check_detections_names_entry_key_and_cure(change, match):
    with pytest.raises(ValueError, match=match):
        files.check_detections([GOOD, GOOD | change], TRUTH)


@pytest.mark.parametrize("key", GOOD)
def test_check_detections_names_missing_key(key):
    entry = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ValueError, match=rf"detections\[0\]: key '{key}' is missing"):
        files.check_detections([entry])


@pytest.mark.parametrize(
    "content, match",
    [
        (TRUTH, "expected a list of results.*images, categories.*annotation file"),
        (None, "expected a list of results.*found nothing"),
        ([[1, 2]], r"detections\[0\]: expected an object with image_id"),
    ],
)
def test_check_detections_refuses_other_content(content, match):
    with pytest.raises(ValueError, match=match):
        files.check_detections(content)


def test_check_detections_without_annotations_takes_any_id():
    files.check_detections([GOOD | {"image_id": "anything", "category_id": 99}])


def test_check_detections_of_empty_annotations_knows_no_image():
    empty = {"images": [], "categories": [], "annotations": []}
    with pytest.raises(ValueError, match="image_id 7 is not in the annotations"):
        files.check_detections([GOOD], empty)


def test_check_detections_text_ids_written_as_numbers():
    truth = TRUTH | {"images": [{"id": "7"}]}
    with pytest.raises(ValueError, match="have '7', so write image_id as str"):
        files.check_detections([GOOD], truth)


# ---------------------------------------------------------------------- annotations


@pytest.mark.parametrize(
    "change, match",
    [
        ({"images": None}, "'images' should be a list, found nothing"),
        ({"images": [{"id": 7}, {"id": 7}]}, r"images\[1\]: id 7 is there twice"),
        ({"images": [{"name": 7}]}, r"images\[0\]: key 'id' is missing \(found name\)"),
        ({"images": [{"id": 7.5}]}, "id should be an int or str, found float 7.5"),
        ({"categories": {}}, "'categories' should be a list"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]},
            r"categories\[1\]: name 'cat' is there twice",
        ),
        ({"categories": [{"id": 3}]}, "key 'name' is missing"),
        ({"images": [{"id": 12}]}, r"annotations\[0\]: image_id 7 is not in"),
        ({"categories": [{"id": 9, "name": "cat"}]}, "category_id 3 is not in"),
        (
            {"annotations": [BOX | {"bbox": [0, 0, float("nan"), 1]}]},
            r"annotations\[0\]: bbox should be four finite numbers",
        ),
        (
            {"annotations": [BOX | {"area": "big"}]},
            "area should be a finite number, found 'big'",
        ),
    ],
)
def test_check_annotations_names_entry_key_and_cure(change, match):
    files.check_annotations(TRUTH)
    with pytest.raises(ValueError, match=match):
        files.check_annotations(TRUTH | change)


def test_check_annotations_refuses_detections():
    with pytest.raises(ValueError, match="found a list of 1: is this a detections"):
        files.check_annotations([GOOD])


# ---------------------------------------------------------------------- conversions


def test_to_results_maps_back_clips_and_drops_padding():
    # 300 x 400 (h, w) in the network, 150 x 800 on disk: x times 2, y times 1/2.
    # First box (10, 20, 30, 60) -> x 20..60, y 10..30. The second reaches over the
    # right and lower border, 420 x 2 = 840 > 800 and 310 / 2 = 155 > 150.
    nan = np.nan
    detections = Detections(
        boxes=np.array(
            [[10, 20, 30, 60], [350, 280, 420, 310], [nan, nan, nan, nan]], np.float32
        ),
        scores=np.array([0.5, 0.25, nan], np.float32),
        classes=np.array([2, 1, 77]),
        valid=np.array([True, True, False]),
    )
    size, original = np.array([300, 400]), np.array([150, 800])
    assert files.to_results(detections, "b", size, original, (3, 18)) == [
        {
            "image_id": "b",
            "category_id": 18,
            "bbox": [20.0, 10.0, 40.0, 20.0],
            "score": 0.5,
        },
        {
            "image_id": "b",
            "category_id": 3,
            "bbox": [700.0, 140.0, 100.0, 10.0],
            "score": 0.25,
        },
    ]


def test_to_results_of_nothing_is_empty():
    empty = Detections(
        np.zeros((5, 4)), np.zeros(5), np.zeros(5, int), np.zeros(5, bool)
    )
    assert files.to_results(empty, 1, (10, 10), (20, 20), (3,)) == []


@pytest.mark.parametrize("wrong", [0, 3])
def test_to_results_refuses_classes_without_category(wrong):
    one = Detections(np.ones((1, 4)), np.ones(1), np.array([wrong]), np.ones(1, bool))
    with pytest.raises(ValueError, match=r"image 9: found classes .* expected 1\.\.2"):
        files.to_results(one, 9, (10, 10), (20, 20), (3, 18))


def test_to_results_is_json(tmp_path):
    one = Detections(
        np.array([[1, 2, 3, 4]], np.float32),
        np.array([0.5], np.float32),
        np.array([1], np.int32),
        np.ones(1, bool),
    )
    rows = files.to_results(one, 7, (10, 10), (20, 30), [3, 18])
    files.write_detections(tmp_path / "found.json", rows, TRUTH)
    assert json.loads((tmp_path / "found.json").read_text()) == rows


def test_to_table_counts_images_by_id_and_categories_by_place():
    truth = TRUTH | {"images": [{"id": 12}, {"id": "b"}, {"id": 7}, {"id": "a"}]}
    ids = (12, "a", 7, "b")
    rows = [GOOD | {"image_id": i, "category_id": c} for i in ids for c in (18, 3)]
    table = files.to_table(rows, truth)
    assert table.image.tolist() == [1, 1, 2, 2, 0, 0, 3, 3]
    assert table.category.tolist() == [1, 0] * 4
    assert table.boxes[0].tolist() == [1.0, 2.0, 4.0, 6.5]
    assert files.to_table([], truth).boxes.shape == (0, 4)
