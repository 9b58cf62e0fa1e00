"""Cascade R-CNN (Cai, Vasconcelos 2018): box heads that refine what the one before did.

b images, g ground-truth slots, r RoIs. `model` is a bound CascadeRCNN
(`model.stages=3`). The first stage is the RPN of `faster_rcnn`, the RoIs of its box
head are those of `fast_rcnn`; the later box heads learn from the same RoIs, refined.
The losses of stage i are `roi_cls_i` and `roi_box_i`, weighed by `config.loss_weights`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frcnn_jax import cascade, ranges
from frcnn_jax.training.algorithms import fast_rcnn, faster_rcnn
from frcnn_jax.training.algorithms.faster_rcnn import first_stage as first_stage
from frcnn_jax.training.algorithms.faster_rcnn import propose as propose
from frcnn_jax.types import Batch, Detections, Proposals, RoITargets

PROPOSES = True
STDS = ((0.05, 0.05, 0.1, 0.1), (1 / 30, 1 / 30, 1 / 15, 1 / 15))


class Cascade(NamedTuple):
    """What the group `cascade` says; the first box head has none of it."""

    fg_iou: tuple[float, ...]
    stds: tuple[Sequence[float], ...]
    feature_gradient: float


def later_stages(
    *,
    fg_iou: Sequence[float] = (0.6, 0.7),
    stds: Sequence[Sequence[float]] = STDS,
    feature_gradient: float | int = 1.0,
) -> Cascade:
    """The second and later box heads; `roi_targets` is the first one's.

    `fg_iou` and `stds` have one entry each. `feature_gradient` multiplies the gradient
    from the box heads to the features: Detectron2 has 1 / stages, MMDetection 1.
    Raises ValueError where their numbers differ.
    """
    ranges.check(
        "cascade",
        fg_iou=(fg_iou, ranges.several(ranges.SHARE)),
        stds=(stds, ranges.several(ranges.STDS)),
        feature_gradient=(feature_gradient, ranges.NOT_NEGATIVE),
    )
    if len(fg_iou) != len(stds):
        raise ValueError(
            f"config.cascade has {len(fg_iou)} fg_iou but {len(stds)} stds: give "
            "one of each for every box head after the first"
        )
    return Cascade(tuple(fg_iou), tuple(stds), feature_gradient)


GROUPS: dict[str, Any] = {"cascade": later_stages}


def loss_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of the RPN, and two a box head."""
    count = config["model"].get("stages", 1)
    ranges.check("config.model", stages=(count, ranges.number(2, whole=True)))
    pairs = [(f"roi_cls_{i}", f"roi_box_{i}") for i in range(1, count + 1)]
    return "rpn_cls", "rpn_box", *(name for pair in pairs for name in pair)


def check(config: Mapping[str, Any]) -> None:
    """As many stages here as box heads there; the same `stds` in the last decoding."""
    faster_rcnn.check_rpn(config)
    later, count = later_stages(**config["cascade"]), config["model"].get("stages", 1)
    if len(later.fg_iou) + 1 != count:
        raise ValueError(
            f"config.model.stages={count} but config.cascade has {len(later.fg_iou)} "
            "fg_iou: expected one for every box head after the first"
        )
    last = config["postprocess"].get("stds", fast_rcnn.STDS)
    ranges.check("config.postprocess", stds=(last, ranges.STDS))
    if tuple(last) != tuple(later.stds[-1]):
        raise ValueError(
            f"config.cascade.stds ends in {later.stds[-1]} but config.postprocess.stds="
            f"{last}: targets and decoding must use the same"
        )


def image_losses(
    model: Any,
    stage: faster_rcnn.Stage,
    batch: Batch,
    keys: Array,
    config: Mapping[str, Any],
    *,
    dropout: bool = True,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """The losses of the RPN and of each box head, of each image.

    And the counts of `fast_rcnn.counts` of the last box head's RoIs. The normaliser is
    the same for all box heads, the RoIs of an image: no stage draws a new sample.
    """
    terms = faster_rcnn.rpn_losses(stage.rpn, batch, keys[:, 0], config)
    props = propose(stage, batch, **config["proposals"]["train"])
    rois = fast_rcnn.sample(props, batch, keys[:, 1], config)
    later = later_stages(**config["cascade"])
    features = scale_gradient(stage.features, later.feature_gradient)
    stds = (config["roi_targets"].get("stds", fast_rcnn.STDS), *later.stds)
    for i in range(len(stds)):
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys[:, 2], i)
        class_logits, class_deltas = model.detect_stage(
            *(features, rois.boxes, i, drawn if dropout else None),
            extent=stage.extent,
        )
        loss = partial(fast_rcnn.roi_loss, config=config, stds=stds[i])
        cls, box = jax.vmap(loss)(rois, class_logits, class_deltas)
        terms |= {f"roi_cls_{i + 1}": cls, f"roi_box_{i + 1}": box}
        counts = fast_rcnn.counts(rois, class_logits)
        if i < len(later.stds):
            pair = stds[i], stds[i + 1]
            rois = next_targets(
                rois, class_deltas, batch, stds=pair, fg_iou=later.fg_iou[i]
            )
    return terms, counts


def scale_gradient(tree: Any, factor: float) -> Any:
    """`tree`, whose gradient is multiplied by `factor`."""
    if factor == 1:
        return tree

    def scaled(x):
        constant = jax.lax.stop_gradient(x)
        return constant + factor * (x - constant)

    return jax.tree.map(scaled, tree)


def next_targets(
    rois: RoITargets,
    class_deltas: Float[Array, "b r 1 4"],
    batch: Batch,
    *,
    stds: tuple[Sequence[float], Sequence[float]],
    fg_iou: float,
) -> RoITargets:
    """What a box head learns from the RoIs that the one before has refined.

    `stds` are those of the one before and its own.
    """
    refine = partial(cascade.refine, stds=stds[0])
    valid = rois.labels >= 0
    boxes = jax.vmap(refine)(rois.boxes, valid, class_deltas, batch.image_size)
    label = partial(cascade.stage_targets, fg_iou=fg_iou, stds=stds[1])
    return jax.vmap(label)(
        boxes,
        valid,
        batch.gt_boxes,
        batch.gt_classes,
        batch.gt_valid,
        batch.gt_ignore,
    )


def detect(
    model: Any,
    stage: Any,
    props: Proposals,
    batch: Batch,
    config: Mapping[str, Any],
) -> Detections:
    """All box heads on `props`: the last one's boxes, the mean of all scores."""
    later = later_stages(**config["cascade"])
    first = config["roi_targets"].get("stds", fast_rcnn.STDS)
    boxes, logits = props.boxes, []
    for i, stds in enumerate((first, *later.stds)):
        class_logits, class_deltas = model.detect_stage(
            stage.features, boxes, i, extent=stage.extent
        )
        logits.append(class_logits)
        if i < len(later.stds):
            step = partial(cascade.refine, stds=stds)
            boxes = jax.vmap(step)(boxes, props.valid, class_deltas, batch.image_size)
    class_logits = jax.vmap(cascade.mean_logits, 1)(jnp.stack(logits))
    return jax.vmap(fast_rcnn.postprocess_of(config))(
        boxes, props.valid, class_logits, class_deltas, batch.image_size
    )
