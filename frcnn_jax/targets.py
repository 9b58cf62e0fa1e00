"""Targets: the labels and deltas that the RPN and the detector learn, for one image.

    key     PRNG key of this image          a   anchors
    g       ground-truth slots (padded)     r   sampled RoIs
    labels  -1 not sampled, 0 background, >= 1 object (RPN: 1; detector: class)

matching + sampling + encoding; `jax.vmap` for a batch:

    t = jax.vmap(rpn_targets, (0, None, 0, 0))(keys, anchors, gt_boxes, gt_valid)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Integer, PRNGKeyArray

from frcnn_jax import ranges
from frcnn_jax.arguments import takes
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching, modes
from frcnn_jax.types import Array, Proposals, RoITargets, RPNTargets

SHAPES = dict(gt_boxes="g 4", gt_valid="g", gt_ignore="g")
RANGES = dict(
    fg_iou=ranges.SHARE,
    bg_iou=ranges.SHARE,
    bg_lo=ranges.SHARE,
    num_samples=ranges.COUNT,
    fg_fraction=ranges.SHARE,
    force_best=ranges.TRUTH,
    straddle=ranges.number(0, infinite=True),
    exclude_padding=ranges.TRUTH,
    append_gt=ranges.TRUTH,
    stds=ranges.STDS,
)


@takes(
    "rpn_targets",
    **dict(anchors="a 4", image_size="2", valid="a", places="a"),
    **SHAPES,
    **RANGES,
)
def rpn_targets(
    key: PRNGKeyArray,
    anchors: Float[Array, "a 4"],
    gt_boxes: Float[Array, "g 4"],
    gt_valid: Bool[Array, "g"],
    gt_ignore: Bool[Array, "g"] | None = None,
    image_size: box_ops.ImageSize | None = None,
    valid: Bool[Array, "a"] | None = None,
    places: Integer[Array, "a"] | None = None,
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
    Anchors that are not `valid` take no part, and with `places` (`anchors.places`) what
    is drawn does not depend on them. Padded slots change nothing. ValueError for a
    `straddle` without `image_size`.

    >>> anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    >>> gt_boxes, gt_valid = jnp.array([[1.0, 0, 11, 10]]), jnp.array([True])
    >>> t = rpn_targets(jax.random.key(0), anchors, gt_boxes, gt_valid)
    >>> t.labels.tolist(), f"{t.deltas[0, 0]:.2f}"  # a tenth of a width to the right
    ([1, -1, 0], '0.10')
    """
    anchors = jax.lax.stop_gradient(jnp.asarray(anchors))
    slots = _slots(gt_boxes, gt_valid, gt_ignore)
    matches = matching.match(
        *(anchors, *slots),
        **dict(fg_iou=fg_iou, bg_iou=bg_iou, force_best=force_best),
        valid=_taking_part(anchors, image_size, straddle, exclude_padding, valid),
    )
    how: Any = dict(num_samples=num_samples, fg_fraction=fg_fraction, places=places)
    rows, drawn = matching.sample(key, matches.labels, **how)
    return _of_rows(anchors, matches, slots[0], rows, drawn, stds)


def _slots(*columns):
    """Columns of ground truth as arrays of one slot or more, without a gradient."""
    columns = matching.at_least_one_slot(*jax.tree.map(jnp.asarray, columns))
    return jax.lax.stop_gradient(columns)


def _of_rows(anchors, matches, gt_boxes, rows, drawn, stds):
    """RPNTargets of all anchors, from the `rows` that are `drawn`."""
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


def _taking_part(anchors, image_size, straddle, exclude_padding, valid):
    """Anchors that may be sampled, None for all."""
    if image_size is None:
        if straddle < jnp.inf:
            raise ValueError(
                f"straddle={straddle} needs the border of the image, but image_size is "
                "None: pass image_size=(h, w), or leave straddle at infinity."
            )
        return valid
    ok = jnp.ones(len(anchors), bool) if valid is None else jnp.asarray(valid)
    if straddle < jnp.inf:
        h, w = (jnp.asarray(side, anchors.dtype) for side in image_size)
        x1, y1, x2, y2 = anchors.T
        ok &= (x1 >= -straddle) & (y1 >= -straddle)
        ok &= (x2 <= w + straddle) & (y2 <= h + straddle)
    if exclude_padding:
        ok &= box_ops.centered_inside(anchors, image_size)
    return ok


@takes(
    "roi_targets",
    proposals=dict(boxes="p 4", valid="p"),
    gt_classes="g",
    **SHAPES,
    **RANGES,
)
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
    gt_boxes, gt_classes, gt_valid, gt_ignore = _slots(
        gt_boxes, gt_classes, gt_valid, gt_ignore
    )
    rois, valid = map(jnp.asarray, (proposals.boxes, proposals.valid))
    rois = jax.lax.stop_gradient(rois)
    if append_gt:
        objects = gt_valid if gt_ignore is None else gt_valid & ~gt_ignore
        rois = jnp.concatenate([rois, gt_boxes])
        valid = jnp.concatenate([valid, objects])
    matches = matching.match(
        *(rois, gt_boxes, gt_valid, gt_ignore),
        **dict(fg_iou=fg_iou, bg_iou=bg_iou, bg_lo=bg_lo),
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
