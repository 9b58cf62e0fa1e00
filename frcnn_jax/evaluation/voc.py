"""Pascal VOC's average precision at one IoU threshold.

The devkit's rule (VOCevaldet of VOC2007 and VOC2012): go through a class' detections by
falling score; each is compared with the ONE object of its class and image that it
overlaps most, difficult or not:

| that object | the detection is |
| --- | --- |
| overlaps it by less than `iou`, or there is none | wrong |
| is difficult | not counted, neither way |
| was not found yet | right |
| was found by a better-scoring detection | wrong |

So no second-best object is tried, and the threshold itself is enough (`>=`; some
re-implementations ask for more than it). An object is difficult when its annotation has
`iscrowd` or `ignore`; difficult objects are not counted among those to be found.

Pixels: the devkit's boxes name their last pixel, so its width is `xmax - xmin + 1`.
Our continuous box `(x1, y1, x2, y2)` is the inclusive box `(x1, y1, x2 - 1, y2 - 1)`,
whose width by that formula is `x2 - x1`: the IoU of the inclusive boxes, +1 and all,
equals the IoU of the continuous ones, and that is what is computed. (A loader reads a
file's 1-based `xmin ymin xmax ymax` as `(xmin - 1, ymin - 1, xmax, ymax)`.)

`metric="07"` is the mean of the best precision at recalls 0, .1, ..., 1 (VOC2007; in
whole numbers, so that three objects of ten do reach .3); `"area"` is the area under the
precision made monotone (VOC2010 and later).
"""

import numpy as np
from jaxtyping import Bool, Float

from frcnn_jax.evaluation import files


def evaluate(
    annotations: dict, detections: list[dict], *, iou: float = 0.5, metric: str = "07"
) -> dict:
    """Compute VOC's AP for every class, and their mean.

    Args:
        annotations: COCO dict (see `files`); `iscrowd` or `ignore` means difficult.
        detections: COCO results in any order (equal scores: the first comes first).
        iou: the least overlap of a right detection.
        metric: "07" (eleven points) or "area".

    Returns:
        `{"mAP": float | None, "per_class": {name: {"AP": float | None}}}`: None for a
        class without objects to find (all its objects difficult, or none), which the
        mean leaves out; objects without any detection give 0.0.

    Raises:
        ValueError: an unknown metric; an entry that is malformed or unknown.
    """
    if metric not in ("07", "area"):
        raise ValueError(f"metric is {metric!r}: choose '07' (11 points) or 'area'")
    files.check_annotations(annotations)
    files.check_detections(detections, annotations)
    order = np.argsort([-d["score"] for d in detections], kind="stable")
    found = files.to_table([detections[i] for i in order], annotations)
    entries = annotations["annotations"]
    truth = files.to_table(entries, annotations)
    difficult = np.array(
        [bool(a.get("iscrowd", 0) or a.get("ignore", 0)) for a in entries], bool
    )
    right, counted = _judge(found, truth, difficult, iou)
    average_precision = _eleven_points if metric == "07" else _area
    per_class = {}
    for k, category in enumerate(annotations["categories"]):
        total = int(np.sum(~difficult & (truth.category == k)))
        hits = right[counted & (found.category == k)]
        ap = average_precision(hits, total) if total else None
        per_class[category["name"]] = {"AP": ap}
    defined = [c["AP"] for c in per_class.values() if c["AP"] is not None]
    mean = float(np.mean(defined)) if defined else None
    return {"mAP": mean, "per_class": per_class}


def _judge(
    found: files.Table, truth: files.Table, difficult: np.ndarray, iou: float
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which detections (by falling score) are right, and which count at all."""
    # Every detection meets the objects of its image and class: pairs, as flat arrays.
    images = 1 + max(found.image.max(initial=0), truth.image.max(initial=0))
    key = truth.category * images + truth.image
    by_key = np.argsort(key, kind="stable")
    wanted = found.category * images + found.image
    start = np.searchsorted(key[by_key], wanted, "left")
    count = np.searchsorted(key[by_key], wanted, "right") - start
    detection = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    step = np.arange(len(detection)) - first[detection]
    objects = by_key[start[detection] + step]
    overlap = _iou(found.boxes[detection], truth.boxes[objects])

    # The object overlapped most; the first of equals.
    best = np.lexsort((step, -overlap, detection))[first[count > 0]]
    enough = overlap[best] >= iou
    detection, objects = detection[best][enough], objects[best][enough]
    easy = ~difficult[objects]
    right = np.zeros(len(count), bool)
    right[detection[easy][np.unique(objects[easy], return_index=True)[1]]] = True
    counted = np.ones(len(count), bool)
    counted[detection[~easy]] = False
    return right, counted


def _iou(
    a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """IoU of box i with box i; 0 where both are empty."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    union = areas - common
    return common / np.where(union > 0, union, 1.0)


def _precision(hits: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Best precision at each detection or further down the list."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _eleven_points(hits: Bool[np.ndarray, " n"], total: int) -> float:
    """Mean of the best precision at recall >= 0, .1, ..., 1 (0 where not reached)."""
    # 10 * found >= t * total, in whole numbers; found only grows along the list.
    reached = np.searchsorted(10 * np.cumsum(hits), np.arange(11) * total, "left")
    return float(np.append(_precision(hits), 0.0)[reached].mean())


def _area(hits: Bool[np.ndarray, " n"], total: int) -> float:
    """Sum over the right detections of the best precision there or further, / total."""
    return float(_precision(hits)[hits].sum() / total)
