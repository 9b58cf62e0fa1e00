"""One step of evaluation: detections and the metrics of training, of unseen images."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PyTree

from frcnn_jax.evaluation.recall import IOUS
from frcnn_jax.ops import boxes, matching
from frcnn_jax.training import algorithms
from frcnn_jax.training.step import image_keys, roi_shares
from frcnn_jax.types import Batch, Detections, Proposals


def validate_step(
    variables: PyTree,
    batch: Batch,
    key: Array,
    *,
    model: Any,
    config: Mapping[str, Any],
    axis_name: str | None = "batch",
) -> tuple[Detections, dict[str, Num[Array, ""]]]:
    """The detections of `predict_step`, and sums over the valid images for `means`.

    Backbone and RPN run once. The losses are those of training (its proposals, a sample
    of RoIs), without dropout and with stored batch statistics. The sample of an image
    is the same at every evaluation. The images that fill up the last batch count
    nothing. The sums are over all devices of `axis_name`.
    """

    algorithm = algorithms.of(config)

    def compute(model):
        stage = algorithm.first_stage(model, batch)
        props = algorithm.propose(stage, batch, **config["proposals"]["eval"])
        keys = image_keys(key, jnp.int32(0), batch.index)
        return (
            algorithm.detect(model, stage, props, batch, config),
            algorithm.image_losses(model, stage, batch, keys, config, dropout=False),
            jax.vmap(recall)(
                props, batch.gt_boxes, jnp.asarray(batch.gt_valid & ~batch.gt_ignore)
            ),
        )

    found, (terms, counts), recalls = model.apply(variables, method=compute)
    rows = dict(terms, images=jnp.ones(len(batch.index)), **counts, **recalls)
    sums = {k: jnp.where(batch.valid, x, 0).sum() for k, x in rows.items()}
    return found, sums if axis_name is None else jax.lax.psum(sums, axis_name)


def recall(
    proposals: Proposals,
    gt_boxes: Float[Array, "g 4"],
    objects: Bool[Array, " g"],
) -> dict[str, Num[Array, ""]]:
    """How many `objects` there are, and sums over them of recall at .5:.05:.95.

    One image. `proposal_AR100` takes the first 100 proposals, `proposal_AR1000` (or
    however many there are) all of them; as `evaluation.recall`, but in float32.
    """
    overlap = boxes.iou(gt_boxes, proposals.boxes)
    iou = jnp.where(proposals.valid[None], overlap, 0.0)
    count = len(proposals.valid)
    found = {n: matching.cover(iou[:, :n], objects) for n in {min(100, count), count}}
    return dict(
        objects=objects.sum(),
        **{
            f"proposal_AR{n}": (x[:, None] >= jnp.array(IOUS)[None]).mean(1).sum()
            for n, x in found.items()
        },
    )


def means(
    sums: Iterable[Mapping[str, Any]], loss_weights: Mapping[str, float]
) -> dict[str, float]:
    """The metrics of a whole evaluation from the sums of its batches.

    The losses and their weighted sum `total`, `roi_positive` and `fg_accuracy` as in
    training, and `proposal_AR100`, `proposal_AR1000`: the average recall of the
    proposals (left out where there are no objects).
    """
    sums = [{k: float(v) for k, v in s.items()} for s in jax.device_get(list(sums))]
    whole = {name: sum(s[name] for s in sums) for name in sums[0]}
    images, objects = whole.pop("images"), whole.pop("objects")
    shares = {k: float(v) for k, v in roi_shares(whole).items()}
    result = {}
    for name, value in whole.items():
        if not name.startswith("proposal_AR"):
            result[name] = value / max(images, 1)
        elif objects:
            result[name] = value / objects
    result["total"] = sum(w * result.get(k, 0.0) for k, w in loss_weights.items())
    return result | shares
