"""Soft-NMS, and the search box by box that it shares with NMS by the smaller area.

n boxes of one image · m boxes that are picked

    M = the best box of those that are left;  s_i <- s_i decay(IoU(M, i));  and so on

Bodla et al. 2017, "Soft-NMS: Improving Object Detection With One Line of Code".
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from frcnn_jax.ops import modes
from frcnn_jax.ops.boxes import as_float32
from frcnn_jax.types import Array


def soft_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    sigma: float = 0.5,
) -> Float[Array, " n"]:
    """Return scores after s_i <- s_i exp(-IoU(M, i)^2 / sigma), M each maximum in turn.

    Gaussian Soft-NMS (Bodla et al. 2017, eq. 3). Padded boxes get 0 and change nothing.

    >>> twice = jnp.array([[0.0, 0.0, 10.0, 10.0]] * 2)
    >>> first, second = soft_nms(twice, jnp.array([0.9, 0.8])).tolist()
    >>> f"{first:.3f} {second:.3f}"  # 0.8 exp(-1 / 0.5)
    '0.900 0.108'
    """
    return _rescore(boxes, scores, valid, _gaussian, sigma)


def soft_nms_linear(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    iou_threshold: float = 0.3,
) -> Float[Array, " n"]:
    """Return scores after s_i <- s_i (1 - IoU(M, i)) where IoU(M, i) >= threshold.

    Linear Soft-NMS (Bodla et al. 2017, Section 3). Padded boxes get 0.
    """
    return _rescore(boxes, scores, valid, _linear, iou_threshold)


def soft_nms_indices(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    sigma: float = 0.5,
    max_output: int,
    classes: Int[Array, " n"] | None = None,
) -> tuple[Int[Array, " m"], Float[Array, " m"], Bool[Array, " m"]]:
    """The first `max_output` boxes of `soft_nms`, their new scores, and which are real.

    A box's score is final once it is the maximum, so only so many maxima are searched.
    With `classes`, a maximum lowers the scores of its class alone. Unused slots hold
    index 0 and score 0.

    >>> twice = jnp.array([[0.0, 0.0, 10.0, 10.0]] * 2)
    >>> index, new, _ = soft_nms_indices(twice, jnp.array([0.9, 0.8]), max_output=2)
    >>> index.tolist(), f"{new[1]:.3f}"  # 0.8 exp(-1 / 0.5)
    ([0, 1], '0.108')
    """
    return pick(
        *(boxes, scores, valid, classes),
        lambda pairs: pairs.scores * _gaussian(_iou(pairs), sigma),
        max_output,
    )


def soft_nms_linear_indices(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    iou_threshold: float = 0.3,
    max_output: int,
    classes: Int[Array, " n"] | None = None,
) -> tuple[Int[Array, " m"], Float[Array, " m"], Bool[Array, " m"]]:
    """`soft_nms_indices` of `soft_nms_linear`."""
    return pick(
        *(boxes, scores, valid, classes),
        lambda pairs: pairs.scores * _linear(_iou(pairs), iou_threshold),
        max_output,
    )


class Pairs(NamedTuple):
    """All boxes beside the best of those that are left."""

    scores: Array
    area: Array
    area_of_best: Array
    inter: Array


def _iou(pairs):
    union = pairs.area + pairs.area_of_best - pairs.inter
    return pairs.inter / jnp.where(union > 0, union, 1)


def pick(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None,
    classes: Int[Array, " n"] | None,
    change: Callable[[Pairs], Float[Array, " n"]],
    max_output: int,
) -> tuple[Int[Array, " m"], Float[Array, " m"], Bool[Array, " m"]]:
    """Take the best box, change the scores of its class by it, and so on.

    Returns index, score when picked, and which are real. `change` gives the new scores;
    -inf removes a box. Padded boxes are never picked; unused slots hold 0, 0 and False.
    """
    modes.one_image(
        "nms", boxes=(boxes, "n 4"), scores=(scores, "n"), classes=(classes, "n")
    )
    n = len(scores)
    empty = (
        jnp.zeros(max_output, jnp.int32),
        jnp.zeros(max_output, jnp.float32),
        jnp.zeros(max_output, bool),
    )
    if n == 0 or max_output == 0:
        return empty
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores, jnp.float32)
    real = jnp.ones(n, bool) if valid is None else jnp.asarray(valid)
    group = jnp.zeros(n, jnp.int32) if classes is None else jnp.asarray(classes)
    boxes, scores = lax.stop_gradient((boxes, scores))
    boxes = jnp.where(real[:, None], boxes, 0).astype(jnp.float32)
    scores = jnp.where(real, scores, -jnp.inf)
    boxes, scores, group, *out = modes.carry(
        (boxes, scores, group, *empty), (boxes, scores, group, real)
    )
    x1, y1, x2, y2 = boxes.T
    area, place = (x2 - x1) * (y2 - y1), jnp.arange(n, dtype=jnp.int32)

    def step(k, state):
        scores, index, new, found = state
        best = jnp.argmax(scores).astype(jnp.int32)
        one = place == best
        value, (bx1, by1, bx2, by2, at, of) = (
            scores.max(),
            (
                jnp.where(one, column, 0).sum(dtype=column.dtype)
                for column in (x1, y1, x2, y2, area, group)
            ),
        )
        w = jnp.maximum(jnp.minimum(x2, bx2) - jnp.maximum(x1, bx1), 0)
        h = jnp.maximum(jnp.minimum(y2, by2) - jnp.maximum(y1, by1), 0)
        changed = change(Pairs(scores, area, at, w * h))
        some = value > -jnp.inf
        slot = jnp.where(some, k, max_output)
        index = index.at[slot].set(best, mode="drop")
        new = new.at[slot].set(value, mode="drop")
        found = found.at[slot].set(True, mode="drop")
        scores = jnp.where(group == of, changed, scores)
        return jnp.where(one | ~some, -jnp.inf, scores), index, new, found

    state = lax.fori_loop(0, max_output, step, (scores, *out))
    return state[1:]


def _gaussian(iou, sigma):
    return jnp.exp(-jnp.square(iou) / sigma)


def _linear(iou, threshold):
    return jnp.where(iou >= threshold, 1 - iou, 1)


def _rescore(boxes, scores, valid, decay, parameter):
    modes.one_image(
        "soft_nms", boxes=(boxes, "n 4"), scores=(scores, "n"), valid=(valid, "n")
    )
    return _rescored(boxes, scores, valid, decay, parameter)


@functools.partial(jax.jit, static_argnums=3)
def _rescored(boxes, scores, valid, decay, parameter):
    n, scores, boxes = len(scores), as_float32(scores), as_float32(boxes)
    if n == 0:
        return scores
    if valid is None:
        valid = jnp.ones(n, bool)
    boxes = jnp.where(valid[:, None], boxes, 0)
    boxes, scores, valid = modes.carry((boxes, scores, valid), (boxes, scores, valid))
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1) * (y2 - y1)
    place = jnp.arange(n, dtype=jnp.int32)

    def step(_, state):
        scores, left = state
        best = jnp.argmax(jnp.where(left, scores, -jnp.inf)).astype(jnp.int32)
        w = jnp.maximum(jnp.minimum(x2, x2[best]) - jnp.maximum(x1, x1[best]), 0)
        h = jnp.maximum(jnp.minimum(y2, y2[best]) - jnp.maximum(y1, y1[best]), 0)
        union = area + area[best] - w * h
        iou = w * h / jnp.where(union > 0, union, 1)
        left = left & (place != best)
        lower = scores * decay(iou, parameter).astype(scores.dtype)
        return jnp.where(left, lower, scores), left

    start = jnp.where(valid, scores, 0), valid
    return lax.fori_loop(0, n, step, start)[0]
