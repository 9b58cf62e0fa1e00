"""Losses of the second stage, found by name: `roi_box_loss.name`, `roi_cls_loss.name`.

    r RoIs of one image        k = C + 1 classes, index 0 is background
    u   the class of a RoI, 0 background, -1 not sampled

A box loss takes `BoxRows`, a class loss `ClassRows`; both take the fixed `normalizer`
N and their own keyword arguments, and return one number for the image. Rows that are
not `used` hold harmless numbers already, and `mean` leaves them out. Boxes are in
pixels, deltas in units of the targets' stds. Values out of range raise ValueError:

    def mine(rows: BoxRows, *, normalizer) -> Float[Array, ""]:
        return mean(my_loss(rows.boxes, rows.target_boxes), rows.used, normalizer)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from frcnn_jax import losses, ranges
from frcnn_jax.arguments import takes
from frcnn_jax.losses import Normalizer
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import modes
from frcnn_jax.types import Array


class BoxRows(NamedTuple):
    """The RoIs of one image as a box loss sees them: of each the row of its class.

    `used` are the positive ones (u >= 1); the others have boxes of one pixel and zero
    deltas.
    """

    boxes: Float[Array, "r 4"]  # decoded, pixels
    target_boxes: Float[Array, "r 4"]  # the objects'
    deltas: Float[Array, "r 4"]
    target_deltas: Float[Array, "r 4"]
    used: Bool[Array, "r"]


class ClassRows(NamedTuple):
    """The RoIs of one image as a class loss sees them; `used` are the sampled ones."""

    logits: Float[Array, "r k"]
    labels: Int[Array, "r"]  # 0 where not used
    used: Bool[Array, "r"]


@takes(
    "box_rows",
    rois="r 4",
    class_deltas="r d 4",
    labels="r",
    target_deltas="r 4",
    stds=ranges.STDS,
)
def box_rows(
    rois: Float[Array, "r 4"],
    class_deltas: Float[Array, "r d 4"],
    labels: Int[Array, "r"],
    target_deltas: Float[Array, "r 4"],
    *,
    stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
) -> BoxRows:
    """What a box loss takes; padded and background rows may hold anything.

    Row u - 1 of the deltas belongs to class u, or one row to all. `stds` are those of
    the targets. The target boxes are decoded from `target_deltas`. Raises ValueError
    for `stds` that are not four positive numbers.
    """
    found = jnp.asarray(labels) >= 1
    row = jnp.clip(jnp.asarray(labels) - 1, 0, class_deltas.shape[-2] - 1)
    own = _pick(jnp.asarray(class_deltas), row)
    deltas, wanted = (
        jnp.where(found[:, None], box_ops.as_float32(x), 0.0)
        for x in (own, target_deltas)
    )
    rois = box_ops.as_float32(rois)
    rois = jnp.where(found[:, None], rois, jnp.array([[0, 0, 1, 1]], rois.dtype))
    return BoxRows(
        boxes=box_ops.decode(deltas, rois, stds=stds),
        target_boxes=box_ops.decode(wanted, rois, stds=stds),
        deltas=deltas,
        target_deltas=wanted,
        used=found,
    )


def class_rows(class_logits: Float[Array, "r k"], labels: Int[Array, "r"]) -> ClassRows:
    """What a class loss takes; rows that are not sampled may hold anything."""
    modes.one_image(
        "class_rows", class_logits=(class_logits, "r k"), labels=(labels, "r")
    )
    sampled = jnp.asarray(labels) >= 0
    logits = jnp.where(sampled[:, None], box_ops.as_float32(class_logits), 0.0)
    return ClassRows(logits, jnp.maximum(labels, 0).astype(jnp.int32), sampled)


def mean(
    terms: Float[Array, "r"], used: Bool[Array, "r"], normalizer: Normalizer
) -> Float[Array, ""]:
    """The sum of the `used` terms over `normalizer`."""
    total = jnp.where(used, terms, 0.0).sum()
    return total / jnp.asarray(normalizer, total.dtype)


# -- Boxes -----------------------------------------------------------------------------


def smooth_l1(
    rows: BoxRows, *, normalizer: Normalizer, beta: float | int = 1.0
) -> Float[Array, ""]:
    """Fast R-CNN eq. (2): `1/N sum [u >= 1] smooth_L1(t - t*)`, of the four deltas."""
    ranges.check("smooth_l1", beta=(beta, ranges.NOT_NEGATIVE))
    off = losses.smooth_l1(rows.deltas - rows.target_deltas, beta=beta)
    return mean(off.sum(-1), rows.used, normalizer)


def l1(rows: BoxRows, *, normalizer: Normalizer) -> Float[Array, ""]:
    """`1/N sum [u >= 1] |t - t*|`, over the four deltas: Detectron2's."""
    return smooth_l1(rows, normalizer=normalizer, beta=0)


def iou(rows: BoxRows, *, normalizer: Normalizer) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - IoU)` of the boxes; no gradient where they are apart."""
    off = 1 - box_ops.elementwise_iou(rows.boxes, rows.target_boxes)
    return mean(off, rows.used, normalizer)


def giou(rows: BoxRows, *, normalizer: Normalizer) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - GIoU)` of the boxes (arXiv:1902.09630)."""
    off = losses.giou_loss(rows.boxes, rows.target_boxes)
    return mean(off, rows.used, normalizer)


def diou(rows: BoxRows, *, normalizer: Normalizer) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - DIoU)` of the boxes (arXiv:1911.08287, eq. 7)."""
    off = losses.diou_loss(rows.boxes, rows.target_boxes)
    return mean(off, rows.used, normalizer)


def ciou(rows: BoxRows, *, normalizer: Normalizer) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - CIoU)` of the boxes (arXiv:1911.08287, eq. 10)."""
    off = losses.ciou_loss(rows.boxes, rows.target_boxes)
    return mean(off, rows.used, normalizer)


# -- Classes ---------------------------------------------------------------------------


def cross_entropy(
    rows: ClassRows,
    *,
    normalizer: Normalizer,
    weights: Sequence[float | int] = (),
) -> Float[Array, ""]:
    """`-1/N sum w_u log p_u` over the sampled RoIs, p the softmax of the logits.

    `weights` are w, one a class with background first; empty: all are 1. Raises
    ValueError where their number is another one.
    """
    return mean(-_log_p(rows) * _weight(rows, weights), rows.used, normalizer)


def focal(
    rows: ClassRows,
    *,
    normalizer: Normalizer,
    gamma: float | int = 2.0,
    weights: Sequence[float | int] = (),
) -> Float[Array, ""]:
    """`-1/N sum w_u (1 - p_u)^gamma log p_u`: arXiv:1708.02002 eq. (4), on a softmax.

    `weights` as for `cross_entropy`; they take the place of the paper's alpha.
    """
    ranges.check("focal", gamma=(gamma, ranges.NOT_NEGATIVE))
    log_p = _log_p(rows)
    # For gamma below 1 the slope of a power at 0 is infinite: 1 - p is at least 1e-6.
    hard = jnp.maximum(-jnp.expm1(log_p), 1e-6) ** gamma
    return mean(-hard * log_p * _weight(rows, weights), rows.used, normalizer)


def _log_p(rows):
    """The logarithm of the probability that each RoI gives its label."""
    return _pick(rows.logits, rows.labels) - jax.nn.logsumexp(rows.logits, axis=-1)


def _pick(x, index):
    """`x[i, index[i]]` for each row i, by selection: it runs on a mesh of any kind."""
    own = jnp.arange(x.shape[1], dtype=index.dtype)[None] == index[:, None]
    return jnp.where(own.reshape(own.shape + (1,) * (x.ndim - 2)), x, 0).sum(1)


def _weight(rows, weights):
    if not weights:
        return jnp.ones((), rows.logits.dtype)
    k = rows.logits.shape[-1]
    ranges.check(
        "roi_cls_loss", weights=(weights, ranges.several(ranges.NOT_NEGATIVE, k))
    )
    return modes.take(jnp.asarray(weights, rows.logits.dtype), rows.labels)
