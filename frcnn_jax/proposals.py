"""From network outputs to boxes: RPN proposals and final detections, for one image.

a anchors · n candidates that survive the top-k · r RoIs · C classes
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from frcnn_jax import ranges
from frcnn_jax.arguments import takes
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import modes
from frcnn_jax.ops.nms import nms_indices
from frcnn_jax.types import Array, Detections, Proposals


@takes(
    "proposals",
    **dict(anchors="a 4", box_deltas="a 4", image_size="2", valid="a"),
    **dict(pre_nms=ranges.COUNT, post_nms=ranges.COUNT, nms_iou=ranges.OVERLAP),
    **dict(min_size=ranges.NOT_NEGATIVE, score=ranges.SHARE, stds=ranges.STDS),
    exclude_padding=ranges.TRUTH,
)
def select_proposals(
    anchors: Float[Array, "a 4"],
    objectness_logits: Float[Array, " a"] | Float[Array, "a 2"],
    box_deltas: Float[Array, "a 4"],
    image_size: Int[Array, "2"] | Float[Array, "2"],
    valid: Bool[Array, " a"] | None = None,
    *,
    level_sizes: tuple[int, ...] | None = None,
    pre_nms: int = 2000,
    post_nms: int = 1000,
    nms_iou: float = 0.7,
    min_size: float = 1e-3,
    score: float = 0.0,
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    exclude_padding: bool = True,
) -> Proposals:
    """Return the `post_nms` best boxes of the RPN, Faster R-CNN Section 3.3.

    In each level the `pre_nms` highest scores are taken, decoded, clipped to the image;
    boxes with a side below `min_size` pixels or a score below `score` are dropped; NMS
    at `nms_iou` inside each level; the best over all levels remain. `level_sizes`
    counts the anchors of each level (None: one level). Scores are probabilities:
    sigmoid, or softmax of index 1 for logits [a, 2]. `exclude_padding` drops anchors
    whose centre lies outside `image_size`; anchors that are not `valid` are dropped
    always, and before any is counted. Proposals carry no gradient (approximate joint
    training, Section 3.2). Raises ValueError if `level_sizes` do not add up to a.

    >>> anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> logits, size = jnp.array([1.0, 2.0, 0.0]), jnp.array([40, 40])
    >>> p = select_proposals(anchors, logits, jnp.zeros((3, 4)), size, post_nms=3)
    >>> p.scores.round(2), p.valid.tolist()
    (Array([0.88, 0.5 , 0.  ], dtype=float32), [True, True, False])
    """
    anchors, logits, deltas = lax.stop_gradient(
        jax.tree.map(jnp.asarray, (anchors, objectness_logits, box_deltas))
    )
    logits = _of_objects(logits, len(anchors))
    if valid is not None:
        logits = jnp.where(valid, logits, -jnp.inf)
    if exclude_padding:
        inside = box_ops.centered_inside(anchors, image_size)
        logits = jnp.where(inside, logits, -jnp.inf)
    sizes = (len(anchors),) if level_sizes is None else level_sizes
    index, level = _top_of_levels(logits, sizes, pre_nms)
    logits = modes.take(logits, index)
    deltas, anchors = (modes.take_rows(x, index) for x in (deltas, anchors))
    decoded = box_ops.decode(deltas, anchors, stds=stds)
    candidates = box_ops.clip(decoded, image_size)
    usable = (logits > -jnp.inf) & (jax.nn.sigmoid(logits) >= score)
    usable &= _large_enough(candidates, min_size)
    options: Any = dict(iou_threshold=nms_iou, max_output=post_nms, classes=level)
    best, kept = nms_indices(candidates, logits, usable, **options)
    return Proposals(
        boxes=jnp.where(kept[:, None], modes.take(candidates, best), 0),
        scores=jnp.where(kept, jax.nn.sigmoid(modes.take(logits, best)), 0),
        valid=kept,
    )


def postprocess(
    rois: Float[Array, "r 4"],
    rois_valid: Bool[Array, " r"],
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
    """Return the best `max_detections` after class-wise NMS, Fast R-CNN Section 2.

    Every pair of RoI and class whose softmax probability exceeds `score` is a
    candidate; the best `pre_nms` of them are decoded, clipped, and dropped if a side is
    below `min_size` pixels. With `min_size` 0 boxes without area are dropped at last.
    If there are more candidates, those with the lowest scores are dropped; this changes
    the result only if fewer than `max_detections` of the others survive. Padded RoIs
    (`rois_valid` False, NaN allowed) give no candidates. `class_deltas` are [r, C, 4],
    or [r, 1, 4] shared by all classes.

    >>> rois = jnp.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    >>> logits, deltas = jnp.array([[0.0, 9, 0], [9, 0, 0]]), jnp.zeros((2, 2, 4))
    >>> valid, size = jnp.array([True, True]), jnp.array([40, 40])
    >>> found = postprocess(rois, valid, logits, deltas, size, max_detections=2)
    >>> found.boxes[0].tolist(), found.classes.tolist()
    ([0.0, 0.0, 10.0, 10.0], [1, 0])
    """
    ranges.check(
        "postprocess",
        nms_iou=(nms_iou, ranges.OVERLAP),
        max_detections=(max_detections, ranges.COUNT),
    )
    found = class_candidates(
        *(rois, rois_valid, class_logits, class_deltas, image_size),
        score=score,
        stds=stds,
        pre_nms=pre_nms,
        min_size=min_size,
    )
    best, valid = nms_indices(
        *(found.boxes, found.scores, found.usable),
        iou_threshold=nms_iou,
        max_output=max_detections,
        classes=found.classes,
    )
    return chosen(found, best, modes.take(found.scores, best), valid)


class Candidates(NamedTuple):
    """Pairs of RoI and class by falling score; what is not `usable` may be anything."""

    boxes: Float[Array, "n 4"]
    scores: Float[Array, "n"]
    classes: Int[Array, "n"]  # 1..C
    usable: Bool[Array, "n"]


def class_candidates(
    rois: Float[Array, "r 4"],
    rois_valid: Bool[Array, " r"],
    class_logits: Float[Array, "r _"],
    class_deltas: Float[Array, "r _ 4"],
    image_size: Int[Array, "2"] | Float[Array, "2"],
    *,
    score: float = 0.05,
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    pre_nms: int = 5000,
    min_size: float = 1e-2,
) -> Candidates:
    """What a post-processing chooses from: boxes by class, before any suppression.

    The first half of `postprocess`, which see; `n` is `pre_nms`, or r C if that is
    less.
    """
    ranges.check(
        "postprocess",
        score=(score, ranges.SHARE),
        stds=(stds, ranges.STDS),
        pre_nms=(pre_nms, ranges.COUNT),
        min_size=(min_size, ranges.NOT_NEGATIVE),
    )
    modes.one_image(
        "postprocess",
        rois=(rois, "r 4"),
        rois_valid=(rois_valid, "r"),
        class_logits=(class_logits, "r k"),
        class_deltas=(class_deltas, "r d 4"),
        image_size=(image_size, "2"),
    )
    rois, rois_valid, class_logits, class_deltas = map(
        jnp.asarray, (rois, rois_valid, class_logits, class_deltas)
    )
    r, num_classes = len(rois), class_logits.shape[1] - 1
    probability = jax.nn.softmax(box_ops.as_float32(class_logits))[:, 1:]
    candidate = (probability > score) & rois_valid[:, None]
    probability = jnp.where(candidate, probability, -jnp.inf).reshape(-1)
    top, index = lax.top_k(probability, min(pre_nms, r * num_classes))
    roi, row = index // num_classes, index % num_classes
    place = index if class_deltas.shape[1] > 1 else roi
    deltas = modes.take_rows(class_deltas.reshape(-1, 4), place)
    decoded = box_ops.decode(deltas, modes.take(rois, roi), stds=stds)
    boxes = box_ops.clip(decoded, image_size)
    real = top > -jnp.inf
    return Candidates(
        boxes,
        jnp.where(real, top, 0),
        row + 1,
        real & _large_enough(boxes, min_size),
    )


def chosen(
    found: Candidates,
    best: Int[Array, "m"],
    scores: Float[Array, "m"],
    valid: Bool[Array, "m"],
) -> Detections:
    """The rows `best` of the candidates as detections; zeros where not `valid`.

    Those without area, of which there are none where `min_size` is positive, are left
    out at last, as in Detectron2: they took part in NMS and in the best.
    """
    return _with_area(
        Detections(
            boxes=jnp.where(valid[:, None], modes.take(found.boxes, best), 0),
            scores=jnp.where(valid, scores, 0),
            classes=jnp.where(
                valid, modes.take(found.classes, best).astype(jnp.int32), 0
            ),
            valid=valid,
        )
    )


def _with_area(found: Detections) -> Detections:
    """Detections less those without area, which stand at the end as unused slots."""
    x1, y1, x2, y2 = found.boxes.T
    valid = found.valid & (x2 > x1) & (y2 > y1)
    order = jnp.argsort(~valid, stable=True)
    kept = Detections(
        boxes=jnp.where(valid[:, None], found.boxes, 0),
        scores=jnp.where(valid, found.scores, 0),
        classes=jnp.where(valid, found.classes, 0),
        valid=valid,
    )
    return Detections(*(modes.take(x, order) for x in kept))


def _of_objects(logits, count):
    """One logit an anchor, `[a]`; ValueError unless `logits` are of `count` anchors."""
    if logits.shape not in ((count,), (count, 2)):
        raise ValueError(
            f"select_proposals: objectness_logits has shape {logits.shape}, expected "
            f"{(count,)} or {(count, 2)}: select_proposals takes one image, use "
            "jax.vmap for a batch"
        )
    return logits if logits.ndim == 1 else logits[:, 1] - logits[:, 0]


def _top_of_levels(scores, sizes, count):
    """Indices of the `count` best of every level, and the level of each."""
    if sum(sizes) != len(scores):
        raise ValueError(f"level_sizes are {sizes}, expected a sum of {len(scores)}")
    index, level, start = [], [], 0
    for i, size in enumerate(sizes):
        _, top = lax.top_k(scores[start : start + size], min(count, size))
        index.append(start + top)
        level.append(jnp.full_like(top, i))
        start += size
    return jnp.concatenate(index), jnp.concatenate(level)


def _large_enough(boxes, min_size):
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return (w >= min_size) & (h >= min_size)
