"""Cascade R-CNN (Cai, Vasconcelos 2018, arXiv:1712.00726), for one image.

    r   RoIs, the same ones in every stage        g   ground-truth slots (padded)
    s   stages, box heads one after the other     k = C + 1 classes, background first

A stage refines the RoIs that the one before has refined, and learns from them at a
higher IoU. Boxes are class-agnostic: a RoI has one box, whatever its class.

    logits, deltas = head_1(pool(rois))
    boxes = refine(rois, valid, deltas, image_size, stds=stds_1)
    targets = stage_targets(boxes, valid, gt_boxes, gt_classes, gt_valid, fg_iou=0.6)
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from frcnn_jax import ranges
from frcnn_jax.arguments import takes
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching, modes
from frcnn_jax.types import Array, RoITargets


@takes(
    "refine",
    rois="r 4",
    valid="r",
    class_deltas="r d 4",
    image_size="2",
    stds=ranges.STDS,
)
def refine(
    rois: Float[Array, "r 4"],
    valid: Bool[Array, "r"],
    class_deltas: Float[Array, "r d 4"],
    image_size: box_ops.ImageSize,
    *,
    stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
) -> Float[Array, "r 4"]:
    """The boxes of the next stage: eq. (2) undone, clipped to the image (Sec. 4.1).

    `clip(decode(deltas, rois))`, in pixels; `class_deltas` has one row a RoI (d = 1)
    and is in units of `stds`. No gradient flows: a stage takes its RoIs as constants.
    Rows that are not `valid` become zeros, whatever they hold. Raises ValueError for
    deltas of several classes and for `stds` that are not four positive numbers.

    >>> rois, valid = jnp.array([[0.0, 0, 10, 10]]), jnp.array([True])
    >>> half = jnp.array([[[5.0, 0, 0, 0]]])  # half a width to the right
    >>> refine(rois, valid, half, (20, 12)).tolist()
    [[5.0, 0.0, 12.0, 10.0]]
    """
    if class_deltas.shape[1] != 1:
        raise ValueError(
            f"refine: class_deltas has shape {class_deltas.shape}, expected one row a "
            "RoI: a cascade refines class-agnostic boxes (box_head.class_agnostic=True)"
        )
    rois, deltas = jax.lax.stop_gradient((jnp.asarray(rois), class_deltas[:, 0]))
    keep = jnp.asarray(valid)[:, None]
    rois, deltas = jnp.where(keep, rois, 0.0), jnp.where(keep, deltas, 0.0)
    boxes = box_ops.clip(box_ops.decode(deltas, rois, stds=stds), image_size)
    return jnp.where(keep, boxes, 0.0)


@takes(
    "stage_targets",
    boxes="r 4",
    valid="r",
    gt_boxes="g 4",
    gt_classes="g",
    gt_valid="g",
    gt_ignore="g",
    fg_iou=ranges.SHARE,
    stds=ranges.STDS,
)
def stage_targets(
    boxes: Float[Array, "r 4"],
    valid: Bool[Array, "r"],
    gt_boxes: Float[Array, "g 4"],
    gt_classes: Int[Array, "g"],
    gt_valid: Bool[Array, "g"],
    gt_ignore: Bool[Array, "g"] | None = None,
    *,
    fg_iou: float | int = 0.6,
    stds: Sequence[float] = (0.05, 0.05, 0.1, 0.1),
) -> RoITargets:
    """What a later stage learns from its boxes, all of them (Sec. 4.2, eq. 8).

    IoU >= `fg_iou` with an object is that object's class, less is background. Deltas
    are `encode`d over `stds` where there is a class, zero elsewhere. Label -1, with a
    zero box, have rows that are not `valid` and boxes without area; label -1 has
    background inside a box of `gt_ignore`. Boxes are in pixels. Padded slots change
    nothing. No gradient flows. Raises ValueError for `fg_iou` or `stds` out of range.

    >>> boxes, valid = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5]]), jnp.ones(2, bool)
    >>> gt = jnp.array([[0.0, 0, 10, 10]]), jnp.array([3]), jnp.array([True])
    >>> stage_targets(boxes, valid, *gt, fg_iou=0.6).labels.tolist()
    [3, 0]
    """
    boxes, valid, gt_boxes, gt_classes, gt_valid, gt_ignore = jax.tree.map(
        jnp.asarray, (boxes, valid, gt_boxes, gt_classes, gt_valid, gt_ignore)
    )
    gt_boxes, gt_classes, gt_valid, gt_ignore = matching.at_least_one_slot(
        gt_boxes, gt_classes, gt_valid, gt_ignore
    )
    gt_boxes = jax.lax.stop_gradient(gt_boxes)
    boxes = jnp.where(valid[:, None], jax.lax.stop_gradient(boxes), 0.0)
    valid &= box_ops.area(boxes) > 0
    matches = matching.match(
        *(boxes, gt_boxes, gt_valid, gt_ignore),
        fg_iou=fg_iou,
        bg_iou=fg_iou,
        force_best=False,
        valid=valid,
    )
    found = matches.labels >= 1
    deltas = box_ops.encode(modes.take(gt_boxes, matches.gt_index), boxes, stds=stds)
    classes = modes.take(gt_classes, matches.gt_index).astype(jnp.int32)
    return RoITargets(
        boxes=jnp.where(valid[:, None], boxes, 0.0),
        labels=jnp.where(found, classes, matches.labels),
        deltas=jnp.where(found[:, None], deltas, 0.0),
    )


def mean_logits(class_logits: Float[Array, "s r k"]) -> Float[Array, "r k"]:
    """Logits whose softmax is the mean of the stages' softmaxes (Sec. 4.1, inference).

    `log(1/s sum_i softmax(logits_i))`.

    >>> logits = jnp.log(jnp.array([[[0.2, 0.8]], [[0.6, 0.4]]]))
    >>> [f"{p:.2f}" for p in jax.nn.softmax(mean_logits(logits))[0]]
    ['0.40', '0.60']
    """
    log_p = jax.nn.log_softmax(box_ops.as_float32(class_logits), axis=-1)
    return jax.nn.logsumexp(log_p, axis=0) - math.log(len(class_logits))
