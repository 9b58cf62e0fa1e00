"""VOC's AP: worked on paper, and against a slow loop over inclusive boxes."""

import json
import pathlib

import numpy as np
import pytest

from frcnn_jax.evaluation import voc

A, B, C = [0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]
NOWHERE = [0, 50, 10, 10]


def dataset(*boxes, names=("cat", "dog")):
    """Annotations from (image, category, bbox, {extra keys})."""
    return {
        "images": [{"id": i} for i in range(1, 7)],
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(names)],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box} | (extra[0] if extra else {})
            for i, c, box, *extra in boxes
        ],
    }


def found(*rows):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def both(annotations, detections, name="cat", **kwargs):
    """AP of one class by eleven points and by area."""
    return tuple(
        voc.evaluate(annotations, detections, metric=m, **kwargs)["per_class"][name][
            "AP"
        ]
        for m in ("07", "area")
    )


# ------------------------------------------------------------------- worked on paper


def test_evaluate_precision_and_recall_by_hand():
    # Three cats; by score right, wrong, right, wrong:
    # precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3.
    # Eleven points: recalls 0, .1, .2, .3 see 1; .4, .5, .6 see 2/3; .7 and on see 0.
    # Area: 1/3 * 1 + 1/3 * 2/3.
    truth = dataset((1, 1, A), (1, 1, B), (2, 1, A))
    rows = ((1, 1, A, 0.9), (2, 1, NOWHERE, 0.8), (2, 1, A, 0.7), (1, 1, C, 0.6))
    by_points, by_area = both(truth, found(*rows))
    assert by_points == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert by_area == pytest.approx(1 / 3 + 2 / 9)


def test_evaluate_order_of_entries_does_not_matter():
    truth = dataset((1, 1, A), (1, 1, B), (2, 1, A))
    rows = found((1, 1, A, 0.9), (2, 1, NOWHERE, 0.8), (2, 1, A, 0.7))
    assert both(truth, rows) == both(truth, rows[::-1])
    rows[1]["score"] = 0.95  # but the order of the scores does
    assert both(truth, rows) != both(truth, found((1, 1, A, 0.9), (2, 1, A, 0.7)))


def test_evaluate_second_detection_of_one_object_is_wrong():
    # Right, then a double of the same cat, then nothing for the second cat:
    # eleven points: recalls 0 to .5 see 1; area: 1/2.
    truth = dataset((1, 1, A), (1, 1, C))
    rows = ((1, 1, A, 0.9), (1, 1, A, 0.8))
    assert both(truth, found(*rows)) == pytest.approx((6 / 11, 1 / 2))
    # The double first in line takes the cat; the other's better overlap is no help:
    # wrong ones after the last right one cost nothing.
    shifted = [0, 0, 10, 9]
    rows = ((1, 1, shifted, 0.9), (1, 1, A, 0.8))
    assert both(truth, found(*rows)) == pytest.approx((6 / 11, 1 / 2))


def test_evaluate_tries_only_the_object_overlapped_most():
    # Cats [0, 10] and [4, 14] wide. Both detections overlap the first most (IoU 1 and
    # 9/11 against 7/13 with the second): the second detection is wrong though the
    # second cat is free and overlapped by more than .5.
    truth = dataset((1, 1, [0, 0, 10, 10]), (1, 1, [4, 0, 10, 10]))
    rows = ((1, 1, [0, 0, 10, 10], 0.9), (1, 1, [1, 0, 10, 10], 0.8))
    assert both(truth, found(*rows)) == pytest.approx((6 / 11, 1 / 2))


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": True}])
def test_evaluate_difficult_counts_neither_way(mark):
    # Two boxes on the difficult cat vanish; the remaining one finds the only cat.
    truth = dataset((1, 1, A, mark), (1, 1, B))
    rows = ((1, 1, A, 0.9), (1, 1, A, 0.8), (1, 1, B, 0.7))
    assert both(truth, found(*rows)) == (1.0, 1.0)
    # Not difficult, it is a cat like others: right, wrong, right: precision 1 to
    # recall 1/2, then 2/3.
    truth = dataset((1, 1, A), (1, 1, B))
    expected = (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3
    assert both(truth, found(*rows)) == pytest.approx(expected)


def test_evaluate_threshold_itself_is_enough():
    # 10 x 10 and 10 x 5 from one corner: IoU exactly 1/2.
    truth, rows = dataset((1, 1, A)), found((1, 1, [0, 0, 10, 5], 0.9))
    assert both(truth, rows) == (1.0, 1.0)
    assert both(truth, rows, iou=0.51) == (0.0, 0.0)


def test_evaluate_recall_of_three_tenths_is_reached():
    # Three of ten cats: recalls 0, .1, .2 and .3 see precision 1 (3 / 10 < 3 * .1 in
    # floating point).
    truth = dataset(*((1, 1, [20 * n, 0, 10, 10]) for n in range(10)))
    rows = ((1, 1, [20 * n, 0, 10, 10], 0.9) for n in range(3))
    assert both(truth, found(*rows)) == pytest.approx((4 / 11, 3 / 10))


def test_evaluate_classes_and_images_do_not_mix():
    truth = dataset((1, 1, A), (2, 2, A))
    rows = found((2, 1, A, 0.9), (1, 2, A, 0.9))  # right places, other image
    result = voc.evaluate(truth, rows)
    assert result == {
        "mAP": 0.0,
        "per_class": {"cat": {"AP": 0.0}, "dog": {"AP": 0.0}},
    }


# ------------------------------------------------------------------------ edge cases


def test_evaluate_leaves_out_classes_without_objects():
    # Dogs: a difficult one only. Fish: none, though detected. The mean is the cats'.
    truth = dataset((1, 1, A), (1, 2, B, {"ignore": 1}), names=("cat", "dog", "fish"))
    rows = found((1, 1, A, 0.9), (1, 2, B, 0.9), (1, 3, C, 0.9))
    result = voc.evaluate(truth, rows, metric="area")
    assert result["mAP"] == 1.0
    assert [c["AP"] for c in result["per_class"].values()] == [1.0, None, None]


def test_evaluate_no_detections_gives_zero_and_no_objects_none():
    assert voc.evaluate(dataset((1, 1, A)), [])["mAP"] == 0.0
    assert voc.evaluate(dataset(), [])["mAP"] is None
    assert voc.evaluate(dataset(), found((1, 1, A, 0.5)))["mAP"] is None


def test_evaluate_empty_boxes_are_finite():
    truth = dataset((1, 1, [5, 5, 0, 0]), (1, 1, A))
    rows = found((1, 1, [5, 5, 0, 0], 0.9), (1, 1, A, 0.8))
    # The empty box overlaps nothing: wrong, then right: precision 1/2 up to recall 1/2.
    assert both(truth, rows) == pytest.approx((6 / 22, 1 / 4))


def test_evaluate_refuses_unknown_metric():
    with pytest.raises(ValueError, match="metric is '2012'"):
        voc.evaluate(dataset(), [], metric="2012")


# --------------------------------------------------------------------- slow reference


def slow(annotations, detections, iou, metric):
    """Per-class AP by a loop over inclusive boxes, as VOC files write them."""

    def inclusive(box):  # a VOC file counts pixels from 1 and names the last one
        x, y, w, h = box
        return x + 1, y + 1, x + w, y + h

    def overlap(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0]) + 1
        h = min(a[3], b[3]) - max(a[1], b[1]) + 1
        if w <= 0 or h <= 0:
            return 0.0
        area = [(q[2] - q[0] + 1) * (q[3] - q[1] + 1) for q in (a, b)]
        return w * h / (sum(area) - w * h)

    answer = {}
    for category in annotations["categories"]:
        objects = [
            {
                "image": a["image_id"],
                "box": inclusive(a["bbox"]),
                "difficult": bool(a.get("iscrowd") or a.get("ignore")),
                "taken": False,
            }
            for a in annotations["annotations"]
            if a["category_id"] == category["id"]
        ]
        total = sum(not o["difficult"] for o in objects)
        mine = [d for d in detections if d["category_id"] == category["id"]]
        right, wrong, curve = 0, 0, []
        for detection in sorted(mine, key=lambda d: -d["score"]):
            best, most = None, -1.0
            for candidate in objects:
                if candidate["image"] == detection["image_id"]:
                    value = overlap(inclusive(detection["bbox"]), candidate["box"])
                    if value > most:
                        best, most = candidate, value
            if best is None or most < iou:
                wrong += 1
            elif best["difficult"]:
                continue
            elif best["taken"]:
                wrong += 1
            else:
                best["taken"] = True
                right += 1
            curve.append((right, right / (right + wrong)))
        if not total:
            answer[category["name"]] = None
        elif metric == "07":
            points = [
                max((p for n, p in curve if 10 * n >= t * total), default=0.0)
                for t in range(11)
            ]
            answer[category["name"]] = sum(points) / 11
        else:
            steps = [
                max((p for n, p in curve if n >= k), default=0.0)
                for k in range(1, total + 1)
            ]
            answer[category["name"]] = sum(steps) / total
    return answer


@pytest.mark.parametrize("metric", ["07", "area"])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("draw", range(4))
def test_evaluate_equals_slow_loop(rng, metric, iou, draw):
    # Whole-number boxes crowded together, so that overlaps, doubles, equal scores and
    # equal overlaps abound; the last class has no objects.
    def box():
        return [*rng.integers(0, 6, 2).tolist(), *rng.integers(7, 12, 2).tolist()]

    truth = dataset(
        *(
            (int(rng.integers(1, 6)), int(rng.integers(1, 4)), box())
            + (({"ignore": 1},) if rng.random() < 0.2 else ())
            for _ in range(60)
        ),
        names=("cat", "dog", "fish", "none"),
    )
    rows = found(
        *(
            (
                int(rng.integers(1, 7)),
                int(rng.integers(1, 5)),
                box(),
                round(rng.random(), 1),
            )
            for _ in range(250)
        )
    )
    result = voc.evaluate(truth, rows, iou=iou, metric=metric)
    expected = slow(truth, rows, iou, metric)
    assert expected["none"] is None and all(
        0 < expected[n] < 1 for n in "cat dog".split()
    )
    for name, value in expected.items():
        got = result["per_class"][name]["AP"]
        assert got == (None if value is None else pytest.approx(value, abs=1e-12))
    defined = [v for v in expected.values() if v is not None]
    assert result["mAP"] == pytest.approx(np.mean(defined), abs=1e-12)


@pytest.mark.parametrize("metric", ["07", "area"])
@pytest.mark.parametrize("difficult", [0, 3])
def test_evaluate_equals_slow_loop_on_detections_of_a_trained_network(
    metric, difficult
):
    """Faster R-CNN on eight photographs of BCCD; every third object made difficult."""
    text = (pathlib.Path(__file__).parent / "bccd_detections.json").read_text()
    annotations, detections = json.loads(text).values()
    for i, entry in enumerate(annotations["annotations"]):
        entry["ignore"] = int(bool(difficult) and i % difficult == 0)
    for iou in (0.5, 0.75):
        got = voc.evaluate(annotations, detections, iou=iou, metric=metric)
        expected = slow(annotations, detections, iou, metric)
        assert {k: v["AP"] for k, v in got["per_class"].items()} == pytest.approx(
            expected
        )
        assert 0.2 < got["mAP"] < 0.95
