"""COCO's numbers: hand-made cases, and agreement with two other libraries."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO as SlowCOCO
from pycocotools.cocoeval import COCOeval as SlowEval

from frcnn_jax.evaluation import coco

LEFT, RIGHT = [10.0, 10.0, 40.0, 40.0], [100.0, 10.0, 40.0, 40.0]  # of medium size


def dataset(boxes, images=(1, 2), names=("cat", "dog"), **extra):
    """Annotations from (image, category, bbox) or (image, category, bbox, iscrowd)."""
    return {
        "images": [{"id": i, "height": 200, "width": 200} for i in images],
        "categories": [{"id": 3 * k + 1, "name": n} for k, n in enumerate(names)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "bbox": box}
            | {"area": box[2] * box[3], "iscrowd": int(any(crowd))}
            | extra
            for n, (i, c, box, *crowd) in enumerate(boxes)
        ],
    }


def found(*rows):
    """Detections from (image, category, bbox, score)."""
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def noisy(annotations, rng, *, images=0.9, background=30):
    """Draw shifted copies of the boxes, some misnamed, and boxes out of nowhere.

    Scores are rounded so that many are equal; some images get no detection.
    """
    categories = [c["id"] for c in annotations["categories"]]
    kept = [i for i in annotations["images"] if rng.random() < images]
    ids = {i["id"] for i in kept}
    rows = []
    for entry in annotations["annotations"]:
        for _ in range(rng.integers(0, 4) if entry["image_id"] in ids else 0):
            box = np.array(entry["bbox"])
            box = box + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2)
            box[2:] = np.maximum(box[2:], 1)
            wrong = rng.random() < 0.2
            category = rng.choice(categories) if wrong else entry["category_id"]
            score = round(rng.random(), 2)
            rows.append((entry["image_id"], int(category), box.tolist(), score))
    for image in kept:
        for _ in range(background):
            size = rng.random(2) * [image["width"], image["height"]] / 2
            place = rng.random(2) * ([image["width"], image["height"]] - size)
            box, score = [*place.tolist(), *size.tolist()], round(rng.random() / 2, 2)
            rows.append((image["id"], int(rng.choice(categories)), box, score))
    return found(*(rows[i] for i in rng.permutation(len(rows))))


def slow(annotations, detections):
    """The twelve numbers and per-class AP of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = SlowCOCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        run = SlowEval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats, run.eval["precision"][..., 0, 2]


def faster(annotations, detections):
    """The twelve numbers of faster-coco-eval."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = FasterCOCO(copy.deepcopy(annotations))
        run = COCOeval_faster(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:12]


def twelve(result):
    return [-1 if result[k] is None else result[k] for k in coco.METRICS]


def assert_agrees(annotations, detections):
    result = coco.evaluate(annotations, detections)
    stats, precision = slow(annotations, detections)
    np.testing.assert_array_equal(twelve(result), stats)  # to the last bit
    np.testing.assert_allclose(
        twelve(result), faster(annotations, detections), rtol=0, atol=1e-12
    )
    order = sorted(annotations["categories"], key=lambda c: c["id"])
    for k, category in enumerate(order):
        values = precision[..., k]
        expected = None if (values < 0).all() else values[values > -1].mean()
        assert result["per_class"][category["name"]]["AP"] == expected


# ------------------------------------------------------------------- worked on paper


def test_evaluate_perfect_detections_score_one():
    truth = dataset([(1, 1, LEFT), (2, 4, RIGHT)])
    result = coco.evaluate(truth, found((1, 1, LEFT, 0.9), (2, 4, RIGHT, 0.3)))
    assert result["AP"] == pytest.approx(1) and result["AR1"] == pytest.approx(1)
    assert result["APm"] == pytest.approx(1)
    assert result["APs"] is None and result["APl"] is None  # 1600 px: all are medium
    assert result["per_class"]["dog"]["AP50"] == pytest.approx(1)


def test_evaluate_known_precision_and_recall():
    # Two cats. By score: right (precision 1, recall 1/2), wrong, right (2/3, 1).
    # 51 of the 101 recalls 0, .01, ..., 1 lie at or under 1/2, 50 above:
    # AP50 = (51 * 1 + 50 * 2/3) / 101. AR1 keeps the best one of the image: 1/2.
    truth = dataset([(1, 1, LEFT), (1, 1, RIGHT)])
    rows = ((1, 1, LEFT, 0.9), (1, 1, [10, 120, 40, 40], 0.8), (1, 1, RIGHT, 0.7))
    result = coco.evaluate(truth, found(*rows))
    assert result["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert (result["AR1"], result["AR10"]) == (0.5, 1.0)


def test_evaluate_counts_thresholds_reached():
    # Boxes 40 x 40 and 40 x 28 from one corner: IoU .7, reached by .50, .55, .60, .65
    # and not by .75: with .70 itself, rounding decides, so 29 rows (.725) are used:
    # five thresholds of ten.
    truth = dataset([(1, 1, LEFT)])
    result = coco.evaluate(truth, found((1, 1, [10, 10, 40, 29], 0.9)))
    assert result["AP"] == pytest.approx(0.5)
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1), 0)


def test_evaluate_crowd_swallows_detections_and_is_not_counted():
    # Two detections inside the crowd count neither way, the third finds the only cat.
    truth = dataset([(1, 1, [0.0, 0.0, 90.0, 90.0], 1), (1, 1, RIGHT)])
    rows = ((1, 1, LEFT, 0.9), (1, 1, [5, 5, 30, 30], 0.8), (1, 1, RIGHT, 0.7))
    result = coco.evaluate(truth, found(*rows))
    assert result["AP"] == pytest.approx(1)
    truth["annotations"][0]["iscrowd"] = 0  # now a second cat, and two wrong boxes
    assert coco.evaluate(truth, found(*rows))["AP"] == pytest.approx(51 / 101 / 3)


# ------------------------------------------------------------------------ edge cases


def test_evaluate_no_detections_gives_zeros():
    result = coco.evaluate(dataset([(1, 1, LEFT)]), [])
    assert result["AP"] == result["AP50"] == result["AR100"] == result["APm"] == 0.0
    assert result["per_class"] == {
        "cat": {"AP": 0.0, "AP50": 0.0},
        "dog": {"AP": None, "AP50": None},
    }


@pytest.mark.parametrize("rows", [(), ((1, 1, LEFT, 0.9),)])
def test_evaluate_no_objects_gives_none(rows):
    result = coco.evaluate(dataset([]), found(*rows))
    assert all(result[k] is None for k in coco.METRICS)


def test_evaluate_empty_data_set_gives_none():
    empty = {"images": [], "categories": [], "annotations": []}
    result = coco.evaluate(empty, [])
    assert result == dict.fromkeys(coco.METRICS) | {"per_class": {}}
    nothing = dataset([], images=())
    assert coco.evaluate(nothing, [])["AP"] is None


def test_evaluate_text_ids_equal_number_ids():
    # Found first and second; equal scores are told apart by the order of the ids.
    boxes = [("b", 1, LEFT), ("a", 4, RIGHT), ("b", 1, RIGHT)]
    rows = [("b", 1, LEFT, 0.5), ("a", 1, LEFT, 0.5), ("a", 4, RIGHT, 0.5)]
    number = {"a": 1, "b": 2}
    as_numbers = (
        [(number[r[0]], *r[1:]) for r in boxes],
        [(number[r[0]], *r[1:]) for r in rows],
    )
    text = coco.evaluate(dataset(boxes, images=("b", "a")), found(*rows))
    assert text == coco.evaluate(dataset(as_numbers[0]), found(*as_numbers[1]))
    assert 0 < text["AP"] < 1


def test_evaluate_fills_in_what_annotations_leave_out():
    truth = dataset([(1, 1, LEFT), (2, 4, [0.0, 0.0, 100.0, 100.0])])
    rows = found((1, 1, LEFT, 0.9), (2, 4, [0, 0, 100, 80], 0.8))
    bare = copy.deepcopy(truth)
    for entry in bare["annotations"]:
        del entry["id"], entry["area"], entry["iscrowd"]
    assert coco.evaluate(bare, rows) == coco.evaluate(truth, rows)
    for entry in truth["annotations"]:
        entry["id"] = 0
    assert coco.evaluate(truth, rows) == coco.evaluate(bare, rows)


def test_evaluate_changes_nothing_and_prints_nothing(capfd):
    truth, rows = dataset([(1, 1, LEFT)]), found((1, 1, LEFT, 0.9))
    before = copy.deepcopy((truth, rows))
    coco.evaluate(truth, rows)
    assert (truth, rows) == before
    assert capfd.readouterr() == ("", "")


def test_evaluate_result_is_valid_json():
    result = coco.evaluate(dataset([(1, 1, LEFT)]), found((1, 1, LEFT, 0.9)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    "row, match",
    [
        ((9, 1, LEFT, 0.9), r"detections\[0\]: image_id 9 is not in the annotations"),
        ((1, 9, LEFT, 0.9), "category_id 9 is not in"),
        (("1", 1, LEFT, 0.9), "they have 1, so write image_id as int"),
        ((1, 1, [0, 0, 1, np.nan], 0.9), "four finite numbers"),
        ((1, 1, LEFT, np.nan), "score should be a finite number"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(row, match):
    with pytest.raises(ValueError, match=match):
        coco.evaluate(dataset([(1, 1, LEFT)]), found(row))


# ------------------------------------------------------------------------- agreement


def test_evaluate_agrees_with_others_on_random_boxes(rng):
    boxes = []
    for image in range(1, 31):  # the last ten without annotations
        for _ in range(rng.integers(0, 6) if image <= 20 else 0):
            size = rng.choice([15, 60, 130], 2) * rng.uniform(0.8, 1.2, 2)
            box = [*(rng.random(2) * 60), *size]
            box = [float(v) for v in box]
            boxes.append((image, int(rng.choice([1, 4])), box, rng.random() < 0.15))
    truth = dataset(boxes, images=range(1, 31), names=("cat", "dog", "absent"))
    assert_agrees(truth, noisy(truth, rng))


def test_evaluate_agrees_with_others_on_real_annotations(rng, shared):
    path = shared / "data/coco_mini/annotations/instances_val2017.json"
    truth = json.loads(path.read_text())
    assert sum(a["iscrowd"] for a in truth["annotations"]) == 5
    bare = truth["images"][::8]  # images that lose their annotations
    ids = {i["id"] for i in bare}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in ids]
    assert_agrees(truth, noisy(truth, rng))


# ----------------------------------------------------------------------------- table


def test_format_table_shows_every_number_and_dashes():
    result = coco.evaluate(dataset([(1, 1, LEFT)]), found((1, 1, LEFT, 0.9)))
    lines = coco.format_table(result | {"VOC07": 0.25}).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[1].split() == ["1.000", "1.000", "1.000", "-", "1.000", "-"]
    assert lines[2].split() == ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert (lines[4].strip(), lines[5].strip()) == ("VOC07", "0.250")
    assert lines[-3].split() == ["class", "AP", "AP50"]
    assert lines[-1].split() == ["dog", "-", "-"]
