"""LVIS' federated AP against a loop written from the paper and lvis-api's rules."""

import numpy as np
import pytest

from frcnn_jax.evaluation import lvis

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def data(rng, images=12, classes=5):
    """Random federated annotations, and detections near and away from the objects."""
    annotations, detections = [], []
    entries = []
    for i in range(images):
        kinds = rng.permutation(classes) + 1
        there, rest = kinds[:2], kinds[2:]
        for c in there:
            for _ in range(rng.integers(1, 4)):
                box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 90, 2)]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i + 1,
                        category_id=int(c),
                        bbox=[float(v) for v in box],
                        area=float(box[2] * box[3]),
                        iscrowd=0,
                    )
                )
        entries.append(
            dict(
                id=i + 1,
                neg_category_ids=[int(c) for c in rest[:1]],
                not_exhaustive_category_ids=[int(there[0])] if i % 3 == 0 else [],
            )
        )
    for a in annotations:
        for _ in range(2):
            box = np.array(a["bbox"]) + rng.normal(0, 5, 4)
            box[2:] = np.maximum(box[2:], 4)
            detections.append(found(a["image_id"], a["category_id"], box, rng))
    for _ in range(60):
        image, c = rng.integers(1, images + 1), rng.integers(1, classes + 1)
        box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 90, 2)]
        detections.append(found(image, c, box, rng))
    categories = [
        dict(id=c, name=f"c{c}", frequency="rcfff"[c - 1])
        for c in range(1, classes + 1)
    ]
    truth = dict(images=entries, categories=categories, annotations=annotations)
    return truth, detections


def found(image, category, box, rng):
    return dict(
        image_id=int(image),
        category_id=int(category),
        bbox=[float(v) for v in box],
        score=float(rng.uniform(0.01, 0.99)),
    )


def iou(a, b):
    w = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def slow_ap(truth, detections, category, threshold):
    """AP of one class at one threshold, None without objects."""
    rows, objects = [], 0
    for image in truth["images"]:
        mine = [
            a["bbox"]
            for a in truth["annotations"]
            if (a["image_id"], a["category_id"]) == (image["id"], category)
        ]
        objects += len(mine)
        if not mine and category not in image["neg_category_ids"]:
            continue  # nobody has looked for it
        seen = [
            d
            for d in detections
            if (d["image_id"], d["category_id"]) == (image["id"], category)
        ]
        taken = set()
        for d in sorted(seen, key=lambda d: -d["score"]):
            left = [k for k in range(len(mine)) if k not in taken]
            best = max(left, key=lambda k: iou(d["bbox"], mine[k]), default=None)
            if best is not None and iou(d["bbox"], mine[best]) >= threshold:
                taken.add(best)
                rows.append((d["score"], 1))
            elif category not in image["not_exhaustive_category_ids"]:
                rows.append((d["score"], 0))
    if not objects:
        return None
    hits = np.array([hit for _, hit in sorted(rows, key=lambda r: -r[0])])
    recall = np.cumsum(hits) / objects
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    total = 0.0
    for r in np.linspace(0, 1, 101):
        reached = precision[recall >= r]
        total += reached.max() if len(reached) else 0.0
    return total / 101


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_loop(seed):
    truth, detections = data(np.random.default_rng(seed))
    got = lvis.evaluate(truth, detections)
    slow = {
        (c["id"], t): slow_ap(truth, detections, c["id"], t)
        for c in truth["categories"]
        for t in THRESHOLDS
    }
    by_class = {
        c["id"]: np.mean([slow[c["id"], t] for t in THRESHOLDS])
        for c in truth["categories"]
    }
    assert got["AP"] == pytest.approx(np.mean(list(by_class.values())), abs=1e-6)
    fifty = [slow[c, THRESHOLDS[0]] for c in by_class]
    assert got["AP50"] == pytest.approx(np.mean(fifty), abs=1e-6)
    assert got["APr"] == pytest.approx(by_class[1], abs=1e-6)
    assert got["APc"] == pytest.approx(by_class[2], abs=1e-6)
    assert got["APf"] == pytest.approx(np.mean([by_class[c] for c in (3, 4, 5)]))
    assert 0.05 < got["AP"] < 0.9


def test_only_the_best_300_of_an_image_count(rng):
    truth, _ = data(rng)
    target = truth["annotations"][0]
    right = dict(
        image_id=target["image_id"],
        category_id=target["category_id"],
        bbox=target["bbox"],
        score=0.1,
    )
    others = [
        dict(right, category_id=1 + i % 5, bbox=[200.0 + i, 0.0, 5.0, 5.0], score=0.5)
        for i in range(300)
    ]
    assert lvis.evaluate(truth, [right])["AP"] > 0
    assert lvis.evaluate(truth, [right, *others])["AP"] == 0


def test_ids_may_be_any_and_no_detection_is_zero(rng):
    truth, detections = data(rng)
    before = lvis.evaluate(truth, detections)
    for group in (truth["annotations"], detections):
        for row in group:
            row["category_id"] += 70
    for category in truth["categories"]:
        category["id"] += 70
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [i + 70 for i in image[key]]
    assert lvis.evaluate(truth, detections) == before
    assert lvis.evaluate(truth, [])["AP"] == 0


def test_a_file_of_coco_is_refused():
    plain = dict(
        images=[{"id": 1}], categories=[{"id": 1, "name": "a"}], annotations=[]
    )
    with pytest.raises(ValueError, match="no LVIS file.*frequency"):
        lvis.evaluate(plain, [])
