"""LVIS' box metrics: federated AP, also of rare, common and frequent classes.

Not every class is annotated in every image of LVIS (Gupta et al. 2019, Section 3). A
detection counts only where its class was looked for: in images with an object of the
class and in those whose `neg_category_ids` name it. Where `not_exhaustive_category_ids`
name the class, a detection that meets no object counts neither way. An image has at
most 300 detections, of all classes together. The matching is hotcoco's.
"""

from typing import Any

import numpy as np
from hotcoco import COCO, LVISEval, LVISResults

from frcnn_jax.evaluation import coco, files

MOST = 300  # detections of an image
AREAS = dict(APs=1, APm=2, APl=3)
FREQUENCIES = dict(APr="r", APc="c", APf="f")


def is_federated(annotations: dict) -> bool:
    """Whether annotations are LVIS': every category has a frequency, images negatives.

    >>> is_federated({"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}]})
    False
    """
    categories, images = annotations["categories"], annotations["images"]
    return bool(
        categories
        and all("frequency" in c for c in categories)
        and any("neg_category_ids" in i for i in images)
    )


def evaluate(annotations: dict, detections: list[dict]) -> dict:
    """Compute LVIS' AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AR300.

    AP is the mean over classes, IoU thresholds .50:.05:.95 and 101 recalls of the
    interpolated precision; r, c and f are the classes of at most 10, at most 100 and
    more training images, as `frequency` says.

    Args:
        annotations: an LVIS dict: COCO's, with `neg_category_ids` and
            `not_exhaustive_category_ids` of images and `frequency` of categories.
        detections: COCO results, in any order.

    Returns:
        `{"AP": float | None, ...}`; None where there is no object to find.

    Raises:
        ValueError: an entry is malformed, or the annotations are not LVIS'.
    """
    files.check_annotations(annotations)
    files.check_detections(detections, annotations)
    if not is_federated(annotations):
        raise ValueError(
            "annotations: no LVIS file, which has `frequency` in every category and "
            "`neg_category_ids` in images; COCO's metrics are coco.evaluate"
        )
    truth = COCO(_numbered(annotations))
    found = LVISResults(truth, _results(annotations, detections), MOST)
    run = LVISEval(truth, found, "bbox")
    run.evaluate()
    run.accumulate()
    curves = run.eval or {}
    precision = np.asarray(curves["precision"])[..., -1]  # thresholds recalls k areas
    result = dict(
        AP=coco.mean(precision[..., 0]),
        AP50=coco.mean(precision[0, ..., 0]),
        AP75=coco.mean(precision[5, ..., 0]),
    )
    result |= {name: coco.mean(precision[..., area]) for name, area in AREAS.items()}
    kinds = np.array([c["frequency"] for c in annotations["categories"]])
    for name, kind in FREQUENCIES.items():
        result[name] = coco.mean(precision[:, :, kinds == kind, 0])
    result["AR300"] = coco.mean(np.asarray(curves["recall"])[..., 0, -1])
    return result


def _numbered(annotations: dict) -> dict:
    """As `coco.numbered`, with what LVIS says besides."""
    found = coco.numbered(annotations)
    number = {c["id"]: k + 1 for k, c in enumerate(annotations["categories"])}
    for new, old in zip(found["images"], annotations["images"], strict=True):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            new[key] = [number[i] for i in old.get(key, ()) if i in number]
    for new, old in zip(found["categories"], annotations["categories"], strict=True):
        new["frequency"] = old["frequency"]
    return found


def _results(annotations: dict, detections: list[dict]) -> list[dict]:
    """Detections with the numbers of `coco.numbered`, best first."""
    table = files.to_table(detections, annotations)
    rows: list[dict[str, Any]] = [
        dict(
            image_id=int(image) + 1,
            category_id=int(category) + 1,
            bbox=[float(v) for v in d["bbox"]],
            score=float(d["score"]),
        )
        for d, image, category in zip(
            detections, table.image, table.category, strict=True
        )
    ]
    order = np.argsort([-row["score"] for row in rows], kind="stable")
    return [rows[k] for k in order]
