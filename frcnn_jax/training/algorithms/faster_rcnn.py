"""Faster R-CNN (Ren et al. 2016): the RPN proposes what Fast R-CNN then classifies.

b images, a anchors, g ground-truth slots, r RoIs. `model` is a bound FasterRCNN; the
configuration groups are the keyword arguments of the functions that they are named
after. The second stage is that of `fast_rcnn`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frcnn_jax import losses, proposals, ranges, targets
from frcnn_jax.models import RPNOutput
from frcnn_jax.ops import matching
from frcnn_jax.training.algorithms import fast_rcnn
from frcnn_jax.training.algorithms.fast_rcnn import detect as detect
from frcnn_jax.types import Batch, Features, Proposals

PROPOSES = True
GROUPS: dict[str, Any] = {}


class Stage(NamedTuple):
    """What the images give the second stage."""

    features: Features
    rpn: RPNOutput
    extent: Int[Array, "b 2"] | None = None  # of each image in pixels: `ops.extents`


def loss_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of the RPN, eq. (1), and those of Fast R-CNN."""
    return "rpn_cls", "rpn_box", *fast_rcnn.loss_names(config)


def check(config: Mapping[str, Any]) -> None:
    """The model has an RPN; targets and decoding use the same `stds`."""
    check_rpn(config)
    fast_rcnn.check_stds(config, "roi_targets", "postprocess")


def check_rpn(config: Mapping[str, Any]) -> None:
    """The groups of the first stage fit together."""
    if config["model"].get("external_proposals"):
        raise ValueError(
            f"config.algorithm={config['algorithm']!r} has an RPN, but config.model."
            "external_proposals=True leaves it out: the algorithm is 'fast_rcnn'"
        )
    for part in ("train", "eval"):
        fast_rcnn.check_stds(config, "rpn_targets", f"proposals.{part}")


def first_stage(model: Any, batch: Batch, keys: Array | None = None) -> Stage:
    """Backbone, neck and RPN; `keys` only in training."""
    images = model.normalize(batch.image, batch.image_size)
    extent = model.extent(batch.image_size)
    out = model.rpn(images, extent, None if keys is None else keys[:, 3])
    return Stage(out.features, out, extent)


def image_losses(
    model: Any,
    stage: Stage,
    batch: Batch,
    keys: Array,
    config: Mapping[str, Any],
    *,
    dropout: bool = True,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """The four losses of approximate joint training (Sec. 3.2) of each image.

    And `fast_rcnn.counts` of its RoIs. It has no side effects, so validation uses it as
    well (without `dropout`).
    """
    terms = rpn_losses(stage.rpn, batch, keys[:, 0], config)
    props = propose(stage, batch, **config["proposals"]["train"])
    second, counts = fast_rcnn.sampled_losses(
        model, stage, props, batch, keys, config, dropout=dropout
    )
    return terms | second, counts


def rpn_losses(
    out: RPNOutput, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> dict[str, Float[Array, " b"]]:
    """Eq. (1) of each image.

    N_cls is `rpn_targets.num_samples`. N_reg is the same, as in practice, unless
    `rpn_loss.box_normalizer` says otherwise: the paper has the number of locations, and
    lambda = 10 in `loss_weights.rpn_box`.
    """
    rpn = jax.vmap(
        partial(targets.rpn_targets, **config["rpn_targets"]),
        (0, 0, 0, 0, 0, 0, 0, None),
    )(
        keys,
        out.anchors,
        batch.gt_boxes,
        batch.gt_valid,
        batch.gt_ignore,
        batch.image_size,
        out.inside,
        out.places,
    )
    one_image = partial(
        losses.rpn_loss,
        normalizer=config["rpn_targets"]["num_samples"],
        **config["rpn_loss"],
    )
    cls, box = jax.vmap(one_image)(out.logits, out.deltas, rpn.labels, rpn.deltas)
    return dict(rpn_cls=cls, rpn_box=box)


def propose(stage: Any, batch: Batch, **kwargs: Any) -> Proposals:
    """The RPN's proposals, see `rpn_proposals`."""
    return rpn_proposals(stage.rpn, batch.image_size, **kwargs)


def rpn_proposals(
    out: RPNOutput,
    image_size: Int[Array, "b 2"],
    *,
    use_scores: bool = True,
    use_deltas: bool = True,
    **kwargs: Any,
) -> Proposals:
    """Proposals `[b, post_nms]` of the RPN; `kwargs` as for `select_proposals`.

    Table 2 leaves out one output of the RPN: without `use_scores` boxes come in a
    random order (one draw for all images, the same on every canvas), without
    `use_deltas` they are the anchors. `nms_iou=1` is no NMS.
    """
    ranges.check(
        "proposals",
        use_scores=(use_scores, ranges.TRUTH),
        use_deltas=(use_deltas, ranges.TRUTH),
    )
    if not use_scores:
        order = matching.priorities(jax.random.key(0), out.deltas.shape[1], out.places)
        out = out._replace(logits=jnp.broadcast_to(order, out.deltas.shape[:2]))
    if not use_deltas:
        out = out._replace(deltas=jnp.zeros_like(out.deltas))
    select = partial(proposals.select_proposals, level_sizes=out.level_sizes, **kwargs)
    return jax.vmap(select)(out.anchors, out.logits, out.deltas, image_size, out.inside)
