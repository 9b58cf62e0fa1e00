"""Fast R-CNN (Girshick 2015): RoIs that come with the batch, two losses, detections.

b images, g ground-truth slots, r RoIs. `model` is a bound FastRCNN; the configuration
groups are the keyword arguments of the functions that they are named after. See
`algorithms` for what each function is for.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frcnn_jax import losses, proposals, roi_losses, targets
from frcnn_jax.training import named
from frcnn_jax.types import Batch, Detections, Features, Proposals, RoITargets

PROPOSES = False
GROUPS: dict[str, Any] = {}
STDS = (0.1, 0.1, 0.2, 0.2)  # the default of targets.roi_targets


class Stage(NamedTuple):
    """What the images give the second stage."""

    features: Features
    extent: Int[Array, "b 2"] | None = None  # of each image in pixels: `ops.extents`


def loss_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Fast R-CNN eq. (1)."""
    del config
    return "roi_cls", "roi_box"


def check(config: Mapping[str, Any]) -> None:
    """The model has no RPN; targets and decoding use the same `stds`."""
    if not config["model"].get("external_proposals"):
        raise ValueError(
            "config.algorithm='fast_rcnn' needs config.model.external_proposals=True "
            "and config.data.proposals=FILE; with an RPN the algorithm is 'faster_rcnn'"
        )
    check_stds(config, "roi_targets", "postprocess")


def check_stds(config: Mapping[str, Any], first: str, second: str) -> None:
    """ValueError unless two groups, such as "proposals.train", have equal `stds`."""

    def stds(name: str) -> Any:
        group: Any = config
        for part in name.split("."):
            group = group[part]
        return group.get("stds")

    if stds(first) != stds(second):
        raise ValueError(
            f"config.{first}.stds={stds(first)} but config.{second}.stds="
            f"{stds(second)}: targets and decoding must use the same"
        )


def first_stage(model: Any, batch: Batch, keys: Array | None = None) -> Stage:
    """Backbone and neck; `keys` only in training."""
    images = model.normalize(batch.image, batch.image_size)
    extent = model.extent(batch.image_size)
    drawn = None if keys is None else keys[:, 3]
    return Stage(model.features(images, extent, drawn), extent)


def propose(stage: Any, batch: Batch, **kwargs: Any) -> Proposals:
    """The proposals that came with the batch; ValueError where none did."""
    del stage, kwargs
    if batch.proposals is None:
        raise ValueError(
            "model.external_proposals=True needs proposals with every image: set "
            "data.proposals=FILE (scripts/make_proposals.py writes one)"
        )
    return batch.proposals


def image_losses(
    model: Any,
    stage: Stage,
    batch: Batch,
    keys: Array,
    config: Mapping[str, Any],
    *,
    dropout: bool = True,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """The two losses of each image, and `counts` of its RoIs."""
    props = propose(stage, batch)
    return sampled_losses(model, stage, props, batch, keys, config, dropout=dropout)


def sampled_losses(
    model: Any,
    stage: Any,
    props: Proposals,
    batch: Batch,
    keys: Array,
    config: Mapping[str, Any],
    *,
    dropout: bool,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """Fast R-CNN eq. (1) of each image, on a sample of `props`.

    The proposals are constants: the gradient with respect to their coordinates is
    stopped. Without `dropout` there are no side effects and no draws but the sample.
    The normaliser is fixed, the samples of an image: the mean over images, parts of a
    batch or devices equals the value of the whole batch at once.
    """
    rois = sample(props, batch, keys[:, 1], config)
    class_logits, class_deltas = model.detect(
        *(stage.features, rois.boxes, keys[:, 2] if dropout else None),
        extent=stage.extent,
    )
    stds = config["roi_targets"].get("stds", STDS)
    one_image = partial(roi_loss, config=config, stds=stds)
    cls, box = jax.vmap(one_image)(rois, class_logits, class_deltas)
    return dict(roi_cls=cls, roi_box=box), counts(rois, class_logits)


def roi_loss(
    rois: RoITargets,
    class_logits: Float[Array, "r k"],
    class_deltas: Float[Array, "r d 4"],
    *,
    config: Mapping[str, Any],
    stds: Sequence[float],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both losses of one image: those of `losses.detector_loss`, or those named.

    `config.roi_cls_loss` and `config.roi_box_loss` name functions of `roi_losses`, each
    in place of one term.
    """
    fixed = dict(normalizer=config["roi_targets"]["num_samples"])
    cls, box = losses.detector_loss(
        *(class_logits, class_deltas, rois.labels, rois.deltas),
        **fixed,
        **config["detector_loss"],
    )
    if loss := named.function(config, "roi_cls_loss"):
        cls = loss(roi_losses.class_rows(class_logits, rois.labels), **fixed)
    if loss := named.function(config, "roi_box_loss"):
        rows = (rois.boxes, class_deltas, rois.labels, rois.deltas)
        box = loss(roi_losses.box_rows(*rows, stds=stds), **fixed)
    return cls, box


def sample(
    props: Proposals, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> RoITargets:
    """`roi_targets` of every image."""
    return jax.vmap(partial(targets.roi_targets, **config["roi_targets"]))(
        keys,
        props,
        batch.gt_boxes,
        batch.gt_classes,
        batch.gt_valid,
        batch.gt_ignore,
    )


def counts(
    rois: RoITargets, class_logits: Float[Array, "b r k"]
) -> dict[str, Int[Array, " b"]]:
    """Of each image's RoIs how many are sampled, positive and correct.

    Positive: label >= 1. Correct: positive, and the highest score is that class's.
    """
    positive = rois.labels >= 1
    found = dict(
        sampled=rois.labels >= 0,
        positive=positive,
        correct=positive & (class_logits.argmax(-1).astype(jnp.int32) == rois.labels),
    )
    return {name: roi.sum(1, jnp.int32) for name, roi in found.items()}


def detect(
    model: Any,
    stage: Any,
    props: Proposals,
    batch: Batch,
    config: Mapping[str, Any],
) -> Detections:
    """The second stage on `props`: Detections `[b, max_detections]`."""
    class_logits, class_deltas = model.detect(
        stage.features, props.boxes, extent=stage.extent
    )
    return jax.vmap(postprocess_of(config))(
        props.boxes, props.valid, class_logits, class_deltas, batch.image_size
    )


def postprocess_of(config: Mapping[str, Any]) -> Callable[..., Detections]:
    """The post-processing of one image: `proposals.postprocess`, or the one named."""
    if config["postprocess"].get("name"):
        return named.function(config, "postprocess")  # pyright: ignore
    return partial(proposals.postprocess, **_nameless(config["postprocess"]))


def _nameless(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "name"}
