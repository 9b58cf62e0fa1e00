"""Targets: the labels and deltas that the RPN and the detector learn, for one image.

    key     PRNG key of this image          a   anchors
    g       ground-truth slots (padded)     r   sampled RoIs
    labels  -1 not sampled, 0 background, >= 1 object (RPN: 1; detector: class)

matching + sampling + encoding; `jax.vmap` for a batch:

    t = jax.vmap(rpn_targets, (0, None, 0, 0))(keys, anchors, gt_boxes, gt_valid)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from frcnn_jax import ranges
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching, modes
from frcnn_jax.types import Array, Proposals, RoITargets, RPNTargets


def rpn_targets(
    key: PRNGKeyArray,
    anchors: Float[Array, "a 4"],
    gt_boxes: Float[Array, "g 4"],
    gt_valid: Bool[Array, "g"],
    gt_ignore: Bool[Array, "g"] | None = None,
    image_size: box_ops.ImageSize | None = None,
    *,
    fg_iou: float | int = 0.7,
    bg_iou: float | int = 0.3,
    num_samples: int = 256,
    fg_fraction: float | int = 0.5,
    force_best: bool = True,
    straddle: float | int = jnp.inf,
    exclude_padding: bool = True,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> RPNTargets:
    """Labels and deltas of the anchors of one image, sections 3.1.2 and 3.1.3.

    Of the anchors that `matching.match` calls object or background, `num_samples` are
    drawn, objects up to `fg_fraction`; all others have label -1. Deltas are `encode`d
    over `stds` where the label is 1 and zero elsewhere.

    With `image_size`, anchors that cross the image's border by more than `straddle`
    pixels (0: the paper, which trains on inside anchors only) take no part. With
    `exclude_padding`, neither do those centred outside; they are no object's best.
    Padded slots change nothing. ValueError for a `straddle` without `image_size`.

    >>> anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    >>> gt_boxes, gt_valid = jnp.array([[1.0, 0, 11, 10]]), jnp.array([True])
    >>> t = rpn_targets(jax.random.key(0), anchors, gt_boxes, gt_valid)
    >>> t.labels.tolist(), f"{t.deltas[0, 0]:.2f}"  # a tenth of a width to the right
    ([1, -1, 0], '0.10')
    """
    ranges.check(
        "rpn_targets",
        fg_iou=(fg_iou, ranges.SHARE),
        bg_iou=(bg_iou, ranges.SHARE),
        num_samples=(num_samples, ranges.COUNT),
        fg_fraction=(fg_fraction, ranges.SHARE),
        force_best=(force_best, ranges.TRUTH),
        straddle=(straddle, ranges.number(0, infinite=True)),
        exclude_padding=(exclude_padding, ranges.TRUTH),
        stds=(stds, ranges.STDS),
    )
    modes.one_image(
        "rpn_targets",
        anchors=(anchors, "a 4"),
        gt_boxes=(gt_boxes, "g 4"),
        gt_valid=(gt_valid, "g"),
        gt_ignore=(gt_ignore, "g"),
        image_size=(image_size, "2"),
    )
    anchors, gt_boxes, gt_valid, gt_ignore = jax.tree.map(
        jnp.asarray, (anchors, gt_boxes, gt_valid, gt_ignore)
    )
    anchors, gt_boxes = jax.lax.stop_gradient((anchors, gt_boxes))
    gt_boxes, gt_valid, gt_ignore = matching.at_least_one_slot(
        gt_boxes, gt_valid, gt_ignore
    )
    matches = matching.match(
        anchors,
        gt_boxes,
        gt_valid,
        gt_ignore,
        fg_iou=fg_iou,
        bg_iou=bg_iou,
        force_best=force_best,
        valid=_taking_part(anchors, image_size, straddle, exclude_padding),
    )
    rows, drawn = matching.sample(
        key, matches.labels, num_samples=num_samples, fg_fraction=fg_fraction
    )
    objects = modes.take(gt_boxes, modes.take(matches.gt_index, rows))
    deltas = box_ops.encode(objects, modes.take(anchors, rows), stds=stds)
    found = modes.take(matches.labels, rows) >= 1
    rows = jnp.where(drawn, rows, len(anchors))  # the others fall off the end
    labels, zeros = modes.carry(
        (
            jnp.full(len(anchors), -1, jnp.int32),
            jnp.zeros(anchors.shape, deltas.dtype),
        ),
        (rows, deltas),
    )
    return RPNTargets(
        labels=labels.at[rows].set(found.astype(jnp.int32), mode="drop"),
        deltas=zeros.at[rows].set(jnp.where(found[:, None], deltas, 0.0), mode="drop"),
    )


def _taking_part(anchors, image_size, straddle, exclude_padding):
    """Anchors that may be sampled, None for all."""
    if image_size is None:
        if straddle < jnp.inf:
            raise ValueError(
                f"straddle={straddle} needs the border of the image, but image_size is "
                "None: pass image_size=(h, w), or leave straddle at infinity."
            )
        return None
    ok = jnp.ones(len(anchors), bool)
    if straddle < jnp.inf:
        h, w = (jnp.asarray(side, anchors.dtype) for side in image_size)
        x1, y1, x2, y2 = anchors.T
        ok &= (x1 >= -straddle) & (y1 >= -straddle)
        ok &= (x2 <= w + straddle) & (y2 <= h + straddle)
    if exclude_padding:
        ok &= box_ops.centered_inside(anchors, image_size)
    return ok


def roi_targets(
    key: PRNGKeyArray,
    proposals: Proposals,
    gt_boxes: Float[Array, "g 4"],
    gt_classes: Int[Array, "g"],
    gt_valid: Bool[Array, "g"],
    gt_ignore: Bool[Array, "g"] | None = None,
    *,
    fg_iou: float | int = 0.5,
    bg_iou: float | int = 0.5,
    bg_lo: float | int = 0.0,
    num_samples: int = 512,
    fg_fraction: float | int = 0.25,
    stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    append_gt: bool = True,
) -> RoITargets:
    """RoIs sampled from proposals, with classes and deltas: Fast R-CNN, section 2.3.

    With `append_gt` the objects themselves (no ignored ones) are proposals too. Objects
    have IoU >= fg_iou, background [bg_lo, bg_iou): Fast R-CNN had bg_lo = 0.1, with
    which an image without objects gives no RoI at all. Deltas are `encode`d over
    `stds` where the label is a class and zero elsewhere; slots not filled have label
    -1 and a zero box. Padded slots and invalid proposals change nothing. No gradient
    flows into the proposals (section 3.2, approximate joint training).
    """
    ranges.check(
        "roi_targets",
        fg_iou=(fg_iou, ranges.SHARE),
        bg_iou=(bg_iou, ranges.SHARE),
        bg_lo=(bg_lo, ranges.SHARE),
        num_samples=(num_samples, ranges.COUNT),
        fg_fraction=(fg_fraction, ranges.SHARE),
        stds=(stds, ranges.STDS),
        append_gt=(append_gt, ranges.TRUTH),
    )
    modes.one_image(
        "roi_targets",
        proposals_boxes=(proposals.boxes, "p 4"),
        proposals_valid=(proposals.valid, "p"),
        gt_boxes=(gt_boxes, "g 4"),
        gt_classes=(gt_classes, "g"),
        gt_valid=(gt_valid, "g"),
        gt_ignore=(gt_ignore, "g"),
    )
    proposals, gt_boxes, gt_classes, gt_valid, gt_ignore = jax.tree.map(
        jnp.asarray, (proposals, gt_boxes, gt_classes, gt_valid, gt_ignore)
    )
    gt_boxes, gt_classes, gt_valid, gt_ignore = matching.at_least_one_slot(
        jax.lax.stop_gradient(gt_boxes), gt_classes, gt_valid, gt_ignore
    )
    rois, valid = jax.lax.stop_gradient(proposals.boxes), proposals.valid
    if append_gt:
        objects = gt_valid if gt_ignore is None else gt_valid & ~gt_ignore
        rois = jnp.concatenate([rois, gt_boxes])
        valid = jnp.concatenate([valid, objects])
    matches = matching.match(
        rois,
        gt_boxes,
        gt_valid,
        gt_ignore,
        fg_iou=fg_iou,
        bg_iou=bg_iou,
        bg_lo=bg_lo,
        force_best=False,
        valid=valid,
    )
    rows, drawn = matching.sample(
        key, matches.labels, num_samples=num_samples, fg_fraction=fg_fraction
    )
    slots = modes.take(matches.gt_index, rows)
    found = drawn & (modes.take(matches.labels, rows) >= 1)
    rois = jnp.where(drawn[:, None], modes.take(rois, rows), 0.0)
    deltas = box_ops.encode(modes.take(gt_boxes, slots), rois, stds=stds)
    classes = modes.take(gt_classes, slots).astype(jnp.int32)
    others = jnp.where(drawn, jnp.int32(0), jnp.int32(-1))
    return RoITargets(
        boxes=rois,
        labels=jnp.where(found, classes, others),
        deltas=jnp.where(found[:, None], deltas, 0.0),
    )
