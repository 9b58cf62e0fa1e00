import numpy as np
import pytest

from frcnn_jax.evaluation import coco, errors
from frcnn_jax.evaluation.errors import KINDS, NEVER


def annotations(objects, images=(1,)):
    """`objects` are (image, category, bbox) or with a fourth, iscrowd."""
    return {
        "images": [{"id": i} for i in images],
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            dict(image_id=i, category_id=c, bbox=list(b), iscrowd=int(any(crowd)))
            for i, c, b, *crowd in objects
        ],
    }


def found(*rows):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


BOX, HALF, FAR = (0, 0, 10, 10), (0, 0, 10, 3), (50, 50, 10, 10)


@pytest.mark.parametrize(
    "kind, category, box",
    [
        ("right", 1, BOX),
        ("localisation", 1, HALF),  # IoU .3 with the cat
        ("class", 5, BOX),
        ("both", 5, HALF),
        ("background", 1, FAR),
        ("background", 5, (0, 0, 10, 1)),  # IoU .1: the border belongs to background
    ],
)
def test_analyse_tells_the_kinds_of_error_apart(kind, category, box):
    truth = annotations([(1, 1, BOX)])
    a = errors.analyse(truth, found((1, category, box, 0.7)))
    assert KINDS[a.kind[0]] == kind
    counts = errors.counts(a)
    assert counts[kind] == 1
    touched = kind in ("localisation", "class")
    assert counts["missed"] == (0 if kind == "right" or touched else 1)
    assert a.found[0] == (0.7 if kind == "right" else NEVER)
    assert a.touched[0] == (0.7 if touched else NEVER)
    assert errors.counts(a, 0.71) == dict.fromkeys(KINDS, 0) | {"missed": 1}


def test_the_second_on_an_object_is_a_duplicate_whatever_the_order():
    truth = annotations([(1, 1, BOX)])
    rows = [(1, 1, (0, 0, 10, 9), 0.5), (1, 1, BOX, 0.4), (1, 1, (1, 0, 10, 10), 0.9)]
    a = errors.analyse(truth, found(*rows))
    assert [KINDS[k] for k in a.kind] == ["duplicate", "duplicate", "right"]
    assert a.object.tolist() == [0, 0, 0]


def test_a_crowd_of_its_class_ignores_a_detection_and_is_not_to_be_found():
    truth = annotations([(1, 1, (0, 0, 100, 100), True), (1, 5, FAR)])
    a = errors.analyse(truth, found((1, 1, BOX, 0.9), (1, 5, BOX, 0.8)))
    assert [KINDS[k] for k in a.kind] == ["ignored", "background"]
    assert errors.counts(a)["missed"] == 1
    assert errors.confusion(a, 2).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_beyond_the_best_of_an_image_detections_are_ignored():
    truth = annotations([(1, 1, BOX), (2, 1, BOX)], images=(1, 2))
    rows = [(1, 1, FAR, 0.9), (1, 1, BOX, 0.8), (2, 1, BOX, 0.1)]
    a = errors.analyse(truth, found(*rows), max_detections=1)
    assert [KINDS[k] for k in a.kind] == ["background", "ignored", "right"]


def test_confusion_pairs_one_to_one_and_prefers_the_own_class():
    # A cat and a dog in nearly the same place, and a cat that nobody sees.
    truth = annotations([(1, 1, BOX), (1, 5, (0, 0, 10, 9.5)), (1, 1, FAR)])
    rows = [(1, 1, (0, 0, 10, 9.5), 0.9), (1, 5, BOX, 0.8), (1, 5, BOX, 0.3)]
    a = errors.analyse(truth, found(*rows))
    expected = [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert errors.confusion(a, 2).tolist() == expected
    expected = [[1, 0, 1], [0, 0, 1], [0, 0, 0]]  # the first alone
    assert errors.confusion(a, 2, 0.85).tolist() == expected
    # Without its own class to take, the dog is a cat to the detector.
    a = errors.analyse(annotations([(1, 1, BOX)]), found((1, 5, BOX, 0.8)))
    assert errors.confusion(a, 2).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_nothing_at_all_has_no_errors_and_no_gains():
    for truth in (annotations([]), annotations([], images=())):
        a = errors.analyse(truth, [])
        assert set(errors.counts(a).values()) == {0}
        assert not errors.confusion(a, 2).any()
        assert set(errors.gains(a, 2).values()) == {0.0}
    a = errors.analyse(annotations([(1, 1, BOX)]), [])
    assert errors.counts(a)["missed"] == 1
    a = errors.analyse(annotations([]), found((1, 1, BOX, 0.5)))
    assert KINDS[a.kind[0]] == "background"


def test_a_threshold_never_changes_what_scores_above_it(rng):
    truth, rows = noisy(rng)
    whole = errors.analyse(truth, rows)
    for score in (0.2, 0.5, 0.8):
        part = errors.analyse(truth, [d for d in rows if d["score"] >= score])
        assert errors.counts(whole, score) == errors.counts(part)
        np.testing.assert_array_equal(
            errors.confusion(whole, 3, score), errors.confusion(part, 3)
        )


# What tidecv 1.0.1 (pip, NumPy 2.4.6) answers for `noisy(default_rng(7))`, run by hand
# on 2026-11-24: its AP50 and gains are percents.
TIDE_COUNTS = {
    **{"class": 7, "localisation": 10, "both": 2},
    **{"duplicate": 13, "background": 11, "missed": 8},
}
TIDE_AP50 = 36.281157612580245
TIDE_GAINS = {
    "class": 8.41612829248087,
    "localisation": 10.453320539302801,
    "both": 0.5898329771057647,
    "duplicate": 0.7657592639813586,
    "background": 3.2729461494442944,
    "missed": 11.554367023361266,
}


def test_counts_and_gains_are_those_of_tide():
    truth, rows = noisy(np.random.default_rng(7))
    a = errors.analyse(truth, rows)
    counts = errors.counts(a)
    assert {k: counts[k] for k in TIDE_COUNTS} == TIDE_COUNTS
    assert coco.evaluate(truth, rows)["AP50"] == pytest.approx(TIDE_AP50 / 100)
    gains = errors.gains(a, 3)
    assert {k: 100 * v for k, v in gains.items()} == pytest.approx(TIDE_GAINS, abs=1e-9)


def noisy(rng):
    """Objects of three classes, and detections that are wrong in every way."""
    truth = {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(12)],
        "categories": [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)],
        "annotations": [],
    }
    rows = []
    for i in range(12):
        for _ in range(int(rng.integers(0, 9))):
            box = np.concatenate([rng.uniform(0, 150, 2), rng.uniform(10, 60, 2)])
            category = int(rng.integers(1, 4))
            number = len(truth["annotations"]) + 1
            truth["annotations"].append(
                dict(id=number, image_id=i, category_id=category, bbox=box.tolist())
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.normal(0, rng.choice([1.0, 6.0]), 4)
                moved[2:] = np.maximum(moved[2:], 1.0)
                other = rng.random() < 0.3
                seen = int(rng.integers(1, 4)) if other else category
                rows.append((i, seen, moved.tolist(), float(rng.random())))
        box = np.concatenate([rng.uniform(0, 150, 2), rng.uniform(10, 60, 2)])
        rows.append((i, int(rng.integers(1, 4)), box.tolist(), float(rng.random())))
    return truth, found(*rows)
