"""Detections of two programs side by side, and what the unequal ones came near to.

Equal are those of the same label, boxes within 0.01 pixels and scores within 1e-4.
Features are compared by how far they are apart.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from frcnn_jax.ops import boxes as box_ops


def unmatched(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[int]:
    """Detections of `a` without one of `b`: same label, 0.01 pixels, 1e-4 of score."""
    alone, free = [], np.ones(len(b["boxes"]), bool)
    for i, (box, label, score) in enumerate(
        zip(a["boxes"], a["labels"], a["scores"], strict=True)
    ):
        fits = free & (b["labels"] == label) & (np.abs(b["scores"] - score) <= 1e-4)
        fits &= np.abs(b["boxes"] - box[None]).max(1, initial=0) <= 0.01
        if fits.any():
            free[np.argmax(fits)] = False
        else:
            alone.append(i)
    return alone


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    return max(len(unmatched(a, b)), len(unmatched(b, a)))


def picked(answer: dict[str, np.ndarray], kind: str = "") -> dict[str, np.ndarray]:
    return {k: answer[kind + k] for k in ("boxes", "labels", "scores")}


def ours_as_dict(found: Any) -> dict[str, np.ndarray]:
    n = np.asarray(found.valid)
    return dict(
        boxes=np.asarray(found.boxes)[n],
        labels=np.asarray(found.classes)[n],
        scores=np.asarray(found.scores)[n],
    )


def relative(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference, over the root mean square of the peer's."""
    ours = np.asarray(ours, np.float64).reshape(theirs.shape)
    return float(np.abs(ours - theirs).max() / np.sqrt((theirs**2.0).mean()))


def features_apart(ours: Mapping[int, Any], theirs: Mapping[str, np.ndarray]) -> float:
    """The worst of all maps; of a larger canvas the cells that the peer has, too."""
    deviations = []
    for i, stride in enumerate(sorted(ours)):
        there = theirs[f"features/{i}"]
        here = ours[stride][:, : there.shape[1], : there.shape[2]]
        deviations.append(relative(here, there))
    return max(deviations)


def nearest_decision(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], config: dict[str, Any]
) -> dict[str, float]:
    """How close the unmatched detections came to a bound.

    `score`: to the one that the other side has in its place, or to the least score;
    `iou`: with a box of its class on the other side, to the threshold of NMS; `pixels`:
    to the nearest box of its class there, which is the same one where this is small.
    """
    least, threshold = config["postprocess"]["score"], config["postprocess"]["nms_iou"]
    score, iou, pixels = [np.inf], [np.inf], [np.inf]
    for x, y in ((a, b), (b, a)):
        for i in unmatched(x, y):
            gaps = np.abs(y["scores"][unmatched(y, x)] - x["scores"][i])
            score += [gaps.min(initial=np.inf), abs(x["scores"][i] - least)]
            same = y["labels"] == x["labels"][i]
            if same.any():
                overlaps = box_ops.iou(
                    jnp.asarray(x["boxes"][i][None]), jnp.asarray(y["boxes"][same])
                )
                iou.append(float(np.abs(np.asarray(overlaps) - threshold).min()))
                off = np.abs(y["boxes"][same] - x["boxes"][i][None]).max(1)
                pixels.append(float(off.min()))
    return dict(score=float(min(score)), iou=min(iou), pixels=min(pixels))
