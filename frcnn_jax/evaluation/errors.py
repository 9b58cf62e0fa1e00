"""Kinds of errors of detections, and the AP that they cost, after TIDE.

A detection is right if it finds an object of its class: by falling score each takes the
unfound object that it overlaps most, at IoU `iou` or more, as in COCO. The others are,
by the first that fits (t = `iou`, b = `background`; Bolya et al., TIDE, ECCV 2020):

| kind | the detection |
| --- | --- |
| ignored | lies on a crowd or difficult region of its class: counts neither way |
| localisation | overlaps an object of its class by b to t |
| class | overlaps an object of another class by t or more |
| duplicate | overlaps an object of its class by t or more, which is found already |
| background | overlaps no object by more than b |
| both | overlaps an object of another class by b to t |

An object that nothing found is `missed`, unless a localisation or class error points to
it. Detections below a score threshold never change the result of those above it, so
everything is computed once and filtered by score.

The confusion matrix pairs detections and objects one to one whatever their class: by
falling score each takes the unpaired object that it overlaps most, at `iou` or more,
one of its class before any other.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from frcnn_jax.evaluation import files

KINDS = ("right", "localisation", "class", "both", "duplicate", "background", "ignored")
RIGHT, LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
NEVER = -1.0  # the score of what never was


class Analysis(NamedTuple):
    """One row a detection (n) and one an object of the truth (g), in the files' order.

    Detections beyond the best `max_detections` of an image are ignored.
    """

    score: Float[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]  # class, its position in the categories
    kind: Int[np.ndarray, " n"]  # position in KINDS
    object: Int[np.ndarray, " n"]  # row of the object it finds or points to, or -1
    paired: Int[np.ndarray, " n"]  # row of its object in the confusion matrix, or -1
    category: Int[np.ndarray, " g"]
    ignore: Bool[np.ndarray, " g"]  # crowd or difficult: not to be found
    found: Float[np.ndarray, " g"]  # score of the detection that found it, or NEVER
    touched: Float[np.ndarray, " g"]  # best localisation or class error on it, or NEVER


def analyse(
    annotations: dict,
    detections: list[dict],
    *,
    iou: float = 0.5,
    background: float = 0.1,
    max_detections: int = 100,
) -> Analysis:
    """Classify every detection and every object of COCO-format annotations.

    `iscrowd` or `ignore` mark regions in which detections of the class count neither
    way (the share of the detection that lies in the region exceeds `iou`).

    Raises:
        ValueError: an entry is malformed, or names an unknown image or category.
    """
    files.check_annotations(annotations)
    files.check_detections(detections, annotations)
    entries = annotations["annotations"]
    truth, found = (files.to_table(x, annotations) for x in (entries, detections))
    ignore = np.array(
        [bool(a.get("iscrowd", 0) or a.get("ignore", 0)) for a in entries], bool
    )
    n, g = len(detections), len(entries)
    score = np.array([d["score"] for d in detections], float)
    result = Analysis(
        score=score,
        predicted=found.category,
        kind=np.full(n, IGNORED),
        object=np.full(n, -1),
        paired=np.full(n, -1),
        category=truth.category,
        ignore=ignore,
        found=np.full(g, NEVER),
        touched=np.full(g, NEVER),
    )
    order = np.lexsort((np.arange(n), -score, found.image))
    images = len(annotations["images"])
    rows = np.split(order, np.searchsorted(found.image[order], np.arange(1, images)))
    by_image = np.argsort(truth.image, kind="stable")
    start = np.searchsorted(truth.image[by_image], np.arange(1, images))
    for d, t in zip(rows, np.split(by_image, start), strict=True):
        d = d[:max_detections]
        _analyse_image(result, found.boxes, truth.boxes, d, t, iou, background)
    return result


def _analyse_image(result, found_boxes, truth_boxes, d, t, iou, background):
    """Fills in the rows `d` (by falling score) and `t` of one image."""
    objects, regions = t[~result.ignore[t]], t[result.ignore[t]]
    overlap = _overlap(found_boxes[d], truth_boxes[objects], of_first=False)
    same = result.predicted[d][:, None] == result.category[objects]

    # Those that find an object of their class, and the pairs of any class.
    right = np.full(len(d), -1)
    free, unpaired = np.ones((2, len(objects)), bool)
    for i in range(len(d) if len(objects) else 0):
        own = np.where(same[i], overlap[i], 0.0)
        best = int(np.argmax(own * free))
        if own[best] >= iou and free[best]:
            free[best], right[i] = False, best
        open_ = overlap[i] * unpaired
        best = int(np.argmax(np.where(open_ >= iou, open_ + same[i], 0.0)))
        if open_[best] >= iou:
            unpaired[best], result.paired[d[i]] = False, objects[best]

    inside = _overlap(found_boxes[d], truth_boxes[regions], of_first=True)
    inside *= result.predicted[d][:, None] == result.category[regions]
    ignored = (right < 0) & (inside > iou).any(1)
    own, other = _best(overlap * same), _best(overlap * ~same)
    taken = _best(overlap * same * ~free)
    kinds = [
        (right >= 0, RIGHT, right),
        (ignored, IGNORED, None),
        ((background <= own[0]) & (own[0] <= iou), LOCALISATION, own[1]),
        (other[0] >= iou, CLASS, other[1]),
        (taken[0] >= iou, DUPLICATE, taken[1]),
        (np.maximum(own[0], other[0]) <= background, BACKGROUND, None),
    ]
    result.kind[d] = np.select([k[0] for k in kinds], [k[1] for k in kinds], BOTH)
    for _, kind, best in kinds:
        of_kind = result.kind[d] == kind
        if best is not None and of_kind.any():
            result.object[d[of_kind]] = objects[best[of_kind]]
    hit = d[right >= 0]
    result.found[result.object[hit]] = result.score[hit]
    near = d[np.isin(result.kind[d], (LOCALISATION, CLASS))]
    np.maximum.at(result.touched, result.object[near], result.score[near])


def _best(overlap):
    """The largest overlap of each detection, and with which object."""
    if not overlap.shape[1]:
        return np.zeros(len(overlap)), np.full(len(overlap), -1)
    return overlap.max(1), overlap.argmax(1)


def _overlap(a, b, *, of_first: bool):
    """IoU of each pair; or, `of_first`, the share of the first that lies in the other.

    0 where nothing is to be divided by.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    whole = area_a[:, None] + (0 if of_first else area_b[None] - common)
    whole = np.broadcast_to(whole, common.shape)
    return np.divide(common, whole, out=np.zeros(common.shape), where=whole > 0)


def counts(analysis: Analysis, score: float = 0.0) -> dict[str, int]:
    """How many detections of each kind score at least `score`, and objects `missed`."""
    shown = analysis.score >= score
    number = np.bincount(analysis.kind[shown], minlength=len(KINDS))
    best = np.maximum(analysis.found, analysis.touched)
    missed = ~analysis.ignore & ((best < score) | (best == NEVER))
    return dict(zip(KINDS, number.tolist(), strict=True)) | {
        "missed": int(missed.sum())
    }


def confusion(
    analysis: Analysis, num_classes: int, score: float = 0.0
) -> Int[np.ndarray, "k k"]:
    """Confusion matrix `[C + 1, C + 1]` of the detections of at least `score`.

    Rows are true classes, columns predicted ones; the last row has detections on
    background, the last column objects that are missed. Ignored ones count nowhere.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    counted = (analysis.score >= score) & (analysis.kind != IGNORED)
    true = np.full(len(counted), num_classes)
    pairs = analysis.paired >= 0
    true[pairs] = analysis.category[analysis.paired[pairs]]
    np.add.at(matrix, (true[counted], analysis.predicted[counted]), 1)
    objects = np.bincount(analysis.category[~analysis.ignore], minlength=num_classes)
    matrix[:-1, -1] = objects - matrix[:-1, :-1].sum(1)
    return matrix


def gains(analysis: Analysis, num_classes: int) -> dict[str, float]:
    """How much AP at `iou` would rise if the errors of one kind were corrected.

    Localisation and class errors become right where they are the best-scoring ones on
    an object that nothing found, and vanish elsewhere; errors of other kinds vanish;
    missed objects are not counted. The gains do not add up. Never negative.
    """
    a = analysis
    objects = np.bincount(a.category[~a.ignore], minlength=num_classes)
    counted = a.kind != IGNORED
    right = a.kind == RIGHT
    base = _mean_ap(a.score, a.predicted, right, counted, objects)
    result = {}
    for kind in (LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND):
        wrong = a.kind == kind
        mended = np.zeros(len(wrong), bool)
        if kind in (LOCALISATION, CLASS):
            mended[_best_on_unfound(a)] = True
            mended &= wrong
        classes = a.predicted.copy()
        classes[mended] = a.category[a.object[mended]]
        kept = counted & ~(wrong & ~mended)
        ap = _mean_ap(a.score, classes, right | mended, kept, objects)
        result[KINDS[kind]] = max(ap - base, 0.0)
    missed = ~a.ignore & (np.maximum(a.found, a.touched) == NEVER)
    left = objects - np.bincount(a.category[missed], minlength=num_classes)
    ap = _mean_ap(a.score, a.predicted, right, counted, left, of=objects > 0)
    return result | {"missed": max(ap - base, 0.0)}


def _best_on_unfound(a: Analysis) -> Int[np.ndarray, " m"]:
    """The best localisation or class error on each object that nothing found."""
    near = np.flatnonzero(np.isin(a.kind, (LOCALISATION, CLASS)))
    near = near[a.found[a.object[near]] == NEVER]
    near = near[np.argsort(-a.score[near], kind="stable")]
    return near[np.unique(a.object[near], return_index=True)[1]]


def _mean_ap(score, classes, right, kept, objects, of=None) -> float:
    """COCO's AP (101 recalls) at the threshold of `right`, over the classes `of`."""
    order = np.argsort(-score, kind="stable")
    order = order[kept[order]]
    values = []
    for k in np.flatnonzero(objects > 0 if of is None else of):
        hits = right[order[classes[order] == k]]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(
            np.cumsum(hits) / max(objects[k], 1), np.linspace(0, 1, 101), "left"
        )
        values.append(np.append(precision, 0.0)[reached].mean() if objects[k] else 0.0)
    return float(np.mean(values)) if values else 0.0
