"""COCO's box metrics: the twelve numbers, and AP for each class.

The matching is hotcoco's, a rewrite of pycocotools in Rust. Three libraries were tried
(2026-11-23, two busy CPU cores, loading included, noisy detections made from real
annotations; "apart" is the largest difference from pycocotools in the twelve numbers):

| images | boxes | detections | pycocotools | faster-coco-eval | hotcoco |
| --- | --- | --- | --- | --- | --- |
| | | | 2.0.11 | 1.8.0 | 1.3.0 |
| 79 (COCO) | 624, 5 crowds | 8,166 | 1.03 s | 0.10 s, 6e-17 apart | 0.03 s, 0 |
| 364 (BCCD) | 4,888 | 39,504 | 2.4 s | 0.35 s, 1e-16 apart | 0.09 s, 0 |
| 5,056 (COCO x 64) | 39,936 | 508,327 | 148 s | 8.4 s, 0 apart | 0.86 s, 0 |

hotcoco was chosen: it gives the same numbers to the last bit, is the fastest, needs
NumPy only, has a wheel for every Python from 3.10, and is released every month. It has
one author, so only functions that all three offer are used (two lines replace it by
another), and the tests compare all three. pycocotools refuses an empty list of
detections and annotations without `iscrowd` or `area`, and takes an annotation with id
0 for missed; the other two refuse text ids. Numbering all ids again avoids this, and
the checks of `files` find what none of them refuses (NaN boxes, unknown categories):
with both, the last row takes 3.2 s. Nothing is printed.
"""

import numpy as np
from hotcoco import COCO, COCOeval

from frcnn_jax.evaluation import files

ALL = slice(None)
# name: (which array, IoU threshold .5 + .05 i, area all s m l, kept 1 10 100)
METRICS = {
    "AP": ("precision", ALL, 0, 2),
    "AP50": ("precision", 0, 0, 2),
    "AP75": ("precision", 5, 0, 2),
    "APs": ("precision", ALL, 1, 2),
    "APm": ("precision", ALL, 2, 2),
    "APl": ("precision", ALL, 3, 2),
    "AR1": ("recall", ALL, 0, 0),
    "AR10": ("recall", ALL, 0, 1),
    "AR100": ("recall", ALL, 0, 2),
    "ARs": ("recall", ALL, 1, 2),
    "ARm": ("recall", ALL, 2, 2),
    "ARl": ("recall", ALL, 3, 2),
}


def evaluate(annotations: dict, detections: list[dict]) -> dict:
    """Compute the twelve COCO numbers and every class' AP and AP50.

    AP is the mean over classes, IoU thresholds .50:.05:.95 and 101 recalls of the
    interpolated precision, with at most 100 detections an image; AP50 and AP75 hold one
    threshold; s, m, l are objects of area under 32^2, up to 96^2, and above; AR is the
    mean recall with at most 1, 10 or 100 detections an image.

    Args:
        annotations: COCO dict (see `files`); image ids may be int or str. `iscrowd`
            marks regions whose detections count neither way; `ignore` is not read, as
            in the original; a missing `area` is width * height.
        detections: COCO results, in any order; the list may be empty.

    Returns:
        `{"AP": float | None, ..., "ARl": ..., "per_class": {name: {"AP", "AP50"}}}`.
        None (JSON null) where there is no object to find, which the original writes
        as -1: no class of that name or no object of that size. Objects without any
        detection give 0.0.

    Raises:
        ValueError: an entry is malformed, or names an unknown image or category.

    >>> annotations = {
    ...     "images": [{"id": "a"}],
    ...     "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
    ...     "annotations": [{"image_id": "a", "category_id": 4, "bbox": [0, 0, 9, 9]}],
    ... }
    >>> found = {"image_id": "a", "category_id": 4, "bbox": [0, 0, 9, 7], "score": 0.5}
    >>> result = evaluate(annotations, [found])  # IoU 7/9: right up to threshold .75
    >>> round(result["AP"], 3), round(result["AP75"], 3), result["APl"]
    (0.6, 1.0, None)
    >>> result["per_class"]["dog"]
    {'AP': None, 'AP50': None}
    """
    names = [category["name"] for category in annotations["categories"]]
    curves = _accumulate(annotations, detections)
    if curves is None:
        return dict.fromkeys(METRICS) | {"per_class": {}}
    result: dict = {
        name: mean(np.asarray(curves[what])[threshold, ..., area, kept])
        for name, (what, threshold, area, kept) in METRICS.items()
    }
    precision = np.asarray(curves["precision"])[..., 0, 2]
    return result | {
        "per_class": {
            name: {"AP": mean(precision[..., k]), "AP50": mean(precision[0, :, k])}
            for k, name in enumerate(names)
        }
    }


def precision_recall(annotations: dict, detections: list[dict]) -> dict:
    """Compute the interpolated precision at recalls 0, .01, ..., 1.

    Returns:
        `{"AP50": [101], "AP75": [101], "AP": [101], "per_class": {name: [101]}}`: means
        over the classes with objects at IoU .5, .75 and over .5:.05:.95, and each
        class at .5. A class without objects is left out. Arguments and errors as in
        `evaluate`.
    """
    names = [category["name"] for category in annotations["categories"]]
    curves = _accumulate(annotations, detections)
    if curves is None:
        return {"per_class": {}}
    precision = np.asarray(curves["precision"])[..., 0, 2]  # [threshold, recall, class]
    defined = (precision > -1).all((0, 1))
    if not defined.any():
        return {"per_class": {}}
    mean = precision[..., defined].mean(-1)
    return {
        "AP50": mean[0].tolist(),
        "AP75": mean[5].tolist(),
        "AP": mean.mean(0).tolist(),
        "per_class": {
            names[k]: precision[0, :, k].tolist() for k in np.where(defined)[0]
        },
    }


def _accumulate(annotations: dict, detections: list[dict]) -> dict | None:
    """Precision [threshold, recall, class, area, kept], recall without the second axis.

    None where there is no image or no category.
    """
    files.check_annotations(annotations)
    files.check_detections(detections, annotations)
    if not annotations["categories"] or not annotations["images"]:
        return None
    truth = COCO(numbered(annotations))
    run = COCOeval(truth, truth.load_res(_results(annotations, detections)), "bbox")
    run.evaluate()
    run.accumulate()  # summarize() would print
    return run.eval or {}


def numbered(annotations: dict) -> dict:
    """Number images, categories and annotations 1, 2, ...; keep what is needed."""
    entries = annotations["annotations"]
    table = files.to_table(entries, annotations)
    sizes = table.boxes[:, 2:] - table.boxes[:, :2]
    return {
        "images": [{"id": n + 1} for n in range(len(annotations["images"]))],
        "categories": [
            {"id": k + 1, "name": str(category["name"])}
            for k, category in enumerate(annotations["categories"])
        ],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(image) + 1,
                "category_id": int(category) + 1,
                "bbox": [float(v) for v in entry["bbox"]],
                "area": float(entry.get("area", size.prod())),
                "iscrowd": int(entry.get("iscrowd", 0)),
            }
            for n, (entry, image, category, size) in enumerate(
                zip(entries, table.image, table.category, sizes, strict=True)
            )
        ],
    }


def _results(annotations: dict, detections: list[dict]) -> np.ndarray:
    """Detections as rows (image, x, y, w, h, score, category), numbered likewise."""
    table = files.to_table(detections, annotations)
    boxes = np.array([d["bbox"] for d in detections], float).reshape(-1, 4)
    scores = np.array([d["score"] for d in detections], float)
    return np.column_stack([table.image + 1, boxes, scores, table.category + 1])


def mean(values: np.ndarray) -> float | None:
    """Mean over what is defined; -1 stands for a class without objects."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def format_table(result: dict) -> str:
    """Format a result for people: the numbers six in a row, then a line for each class.

    Any further numbers in `result`, or in the classes' dicts, get a column too; None is
    shown as a dash.

    >>> print(format_table({"AP": 0.5, "APl": None, "per_class": {"cat": {"AP": 0.5}}}))
        AP    APl
     0.500      -
    <BLANKLINE>
    class     AP
    cat    0.500
    """
    numbers = {k: v for k, v in result.items() if k != "per_class"}
    keys = list(numbers)
    lines = []
    for row in (keys[i : i + 6] for i in range(0, len(keys), 6)):
        width = max(6, *map(len, row))
        lines += [
            " ".join(k.rjust(width) for k in row),
            " ".join(_cell(numbers[k]).rjust(width) for k in row),
        ]
    per_class = result.get("per_class", {})
    if per_class:
        columns = list(next(iter(per_class.values())))
        first = max(5, *(len(name) for name in per_class))
        width = max(6, *map(len, columns))
        head = " ".join(c.rjust(width) for c in columns)
        lines += ["", f"{'class':{first}} {head}"]
        for name, values in per_class.items():
            cells = " ".join(_cell(values[c]).rjust(width) for c in columns)
            lines.append(f"{name:{first}} {cells}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
