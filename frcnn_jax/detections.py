"""Post-processing found by name, `postprocess.name`: other ways to suppress duplicates.

    r RoIs of one image        C classes        n detections

Each takes what `proposals.postprocess` takes, and its own keyword arguments, and gives
the same: boxes in pixels inside the image, by falling score; rows that are not `valid`
are zero. Values out of range raise ValueError. Soft-NMS (Bodla et al. 2017,
arXiv:1704.04503) lowers the scores of overlapping boxes and does not remove them, so a
lower `postprocess.score` brings more; the paper has 0.001.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from frcnn_jax import proposals, ranges
from frcnn_jax.ops import nms as nms_ops
from frcnn_jax.proposals import Candidates, class_candidates
from frcnn_jax.types import Array, Detections


def nms(
    rois: Float[Array, "r 4"],
    rois_valid: Bool[Array, "r"],
    class_logits: Float[Array, "r _"],
    class_deltas: Float[Array, "r _ 4"],
    image_size: Int[Array, "2"] | Float[Array, "2"],
    *,
    score: float = 0.05,
    nms_iou: float = 0.5,
    max_detections: int = 100,
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    pre_nms: int = 5000,
    min_size: float = 1e-2,
) -> Detections:
    """`proposals.postprocess`, by its name here."""
    return proposals.postprocess(
        *(rois, rois_valid, class_logits, class_deltas, image_size),
        score=score,
        nms_iou=nms_iou,
        max_detections=max_detections,
        stds=stds,
        pre_nms=pre_nms,
        min_size=min_size,
    )


def soft_nms(
    rois: Float[Array, "r 4"],
    rois_valid: Bool[Array, "r"],
    class_logits: Float[Array, "r _"],
    class_deltas: Float[Array, "r _ 4"],
    image_size: Int[Array, "2"] | Float[Array, "2"],
    *,
    score: float = 0.05,
    nms_iou: float = 0.5,
    max_detections: int = 100,
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    pre_nms: int = 5000,
    min_size: float = 1e-2,
    sigma: float | int = 0.5,
) -> Detections:
    """Gaussian Soft-NMS inside each class (Bodla et al. 2017, eq. 3).

    Candidates as in `proposals.postprocess`. The best one is taken, the scores of the
    others of its class are multiplied by `exp(-IoU^2 / sigma)` with it, and so on.
    Detections whose new score is not above `score` are dropped. There is no threshold:
    `nms_iou` is taken, so that a group of another function fits, and not used.
    """
    del nms_iou
    _check(
        max_detections=(max_detections, ranges.COUNT), sigma=(sigma, ranges.POSITIVE)
    )
    found = class_candidates(
        *(rois, rois_valid, class_logits, class_deltas, image_size),
        score=score,
        stds=stds,
        pre_nms=pre_nms,
        min_size=min_size,
    )
    picked = nms_ops.soft_nms_indices(
        *(found.boxes, found.scores, found.usable),
        sigma=sigma,
        max_output=max_detections,
        classes=found.classes,
    )
    return _above(found, picked, score)


def soft_nms_linear(
    rois: Float[Array, "r 4"],
    rois_valid: Bool[Array, "r"],
    class_logits: Float[Array, "r _"],
    class_deltas: Float[Array, "r _ 4"],
    image_size: Int[Array, "2"] | Float[Array, "2"],
    *,
    score: float = 0.05,
    nms_iou: float = 0.3,
    max_detections: int = 100,
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    pre_nms: int = 5000,
    min_size: float = 1e-2,
) -> Detections:
    """Linear Soft-NMS inside each class (Bodla et al. 2017, Section 3).

    As `soft_nms`, but scores are multiplied by `1 - IoU` where IoU >= `nms_iou`.
    """
    _check(
        max_detections=(max_detections, ranges.COUNT), nms_iou=(nms_iou, ranges.SHARE)
    )
    found = class_candidates(
        *(rois, rois_valid, class_logits, class_deltas, image_size),
        score=score,
        stds=stds,
        pre_nms=pre_nms,
        min_size=min_size,
    )
    picked = nms_ops.soft_nms_linear_indices(
        *(found.boxes, found.scores, found.usable),
        iou_threshold=nms_iou,
        max_output=max_detections,
        classes=found.classes,
    )
    return _above(found, picked, score)


def _check(**values) -> None:
    ranges.check("postprocess", **values)


def _above(found: Candidates, picked, score: float) -> Detections:
    """Those that are still above `score`; as scores fall, they are the first ones."""
    index, scores, valid = picked
    return proposals.chosen(found, index, scores, valid & (scores > jnp.float32(score)))
