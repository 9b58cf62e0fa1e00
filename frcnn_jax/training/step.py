"""One training step and one prediction: the whole algorithm on one page.

b images, a anchors, g ground-truth slots, r RoIs. `model` is a bound FasterRCNN, or a
FastRCNN, whose proposals come with the batch; the configuration groups are the keyword
arguments of the functions they are named after.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from frcnn_jax import losses, proposals, ranges, targets
from frcnn_jax.models import FasterRCNN, RPNOutput
from frcnn_jax.ops import modes
from frcnn_jax.training.state import TrainState, keep, merge, running_mean
from frcnn_jax.types import Batch, Detections, Features, Proposals


class Stage(NamedTuple):
    """What the first stage gives the second; `rpn` is None in a FastRCNN."""

    features: Features
    rpn: RPNOutput | None


def image_keys(key: Array, step: Int[Array, ""], index: Int[Array, " b"]) -> Array:
    """Four keys an image, `[b, 4]`, from the run's key, the step and the example.

    They are for the RPN's sample, the RoIs, dropout of the head, and the backbone.

    They depend on the example's place in its data set, not on the device that holds it,
    so that any number of devices draws the same samples.
    """
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(at_step, i), 4))(
        index
    )


def train_losses(
    model: Any, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> dict[str, Float[Array, ""]]:
    """Four losses of approximate joint training (Faster R-CNN, Sec. 3.2).

    The mean of `image_losses` over the images, without its counts.
    """
    stage = first_stage(model, batch, keys)
    terms, _ = image_losses(model, stage, batch, keys, config)
    return {name: term.mean() for name, term in terms.items()}


def first_stage(model: Any, batch: Batch, keys: Array | None = None) -> Stage:
    """Backbone, neck and, if there is one, RPN; `keys` only in training."""
    images = model.normalize(batch.image, batch.image_size)
    drawn = None if keys is None else keys[:, 3]
    if not isinstance(model, FasterRCNN):
        return Stage(model.features(images, drawn), None)
    out = model.rpn(images, drawn)
    return Stage(out.features, out)


def image_losses(
    model: Any,
    stage: Stage,
    batch: Batch,
    keys: Array,
    config: Mapping[str, Any],
    *,
    dropout: bool = True,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """The four losses of each image, and counts of its RoIs.

    The proposals are constants for the second stage: the gradient with respect to their
    coordinates is stopped. A FastRCNN has the last two losses only, and the batch's
    proposals. It has no side effects, so validation uses it as well (without
    `dropout`). Normalisers are fixed, the samples of an image: the mean over images,
    parts of a batch or devices equals the value of the whole batch at once.

    Of the RoIs are counted: sampled, positive (label >= 1), correct (positive, and the
    class with the highest score is theirs).
    """
    terms = {}
    if stage.rpn is not None:
        terms = rpn_losses(stage.rpn, batch, keys[:, 0], config)
    props = stage_proposals(stage, batch, **config["proposals"]["train"])
    rois = jax.vmap(partial(targets.roi_targets, **config["roi_targets"]))(
        keys[:, 1],
        props,
        batch.gt_boxes,
        batch.gt_classes,
        batch.gt_valid,
        batch.gt_ignore,
    )
    class_logits, class_deltas = model.detect(
        stage.features, rois.boxes, keys[:, 2] if dropout else None
    )
    one_image = partial(
        losses.detector_loss,
        normalizer=config["roi_targets"]["num_samples"],
        **config["detector_loss"],
    )
    terms["roi_cls"], terms["roi_box"] = jax.vmap(one_image)(
        class_logits, class_deltas, rois.labels, rois.deltas
    )
    positive = rois.labels >= 1
    counts = dict(
        sampled=rois.labels >= 0,
        positive=positive,
        correct=positive & (class_logits.argmax(-1) == rois.labels),
    )
    return terms, {name: roi.sum(1, jnp.int32) for name, roi in counts.items()}


def rpn_losses(
    out: RPNOutput, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> dict[str, Float[Array, " b"]]:
    """Eq. (1) of each image.

    N_cls is `rpn_targets.num_samples`. N_reg is the same, as in practice, unless
    `rpn_loss.box_normalizer` says otherwise: the paper has the number of locations, and
    lambda = 10 in `loss_weights.rpn_box`.
    """
    rpn = jax.vmap(
        partial(targets.rpn_targets, **config["rpn_targets"]), (0, None, 0, 0, 0, 0)
    )(
        keys,
        out.anchors,
        batch.gt_boxes,
        batch.gt_valid,
        batch.gt_ignore,
        batch.image_size,
    )
    one_image = partial(
        losses.rpn_loss,
        normalizer=config["rpn_targets"]["num_samples"],
        **config["rpn_loss"],
    )
    cls, box = jax.vmap(one_image)(out.logits, out.deltas, rpn.labels, rpn.deltas)
    return dict(rpn_cls=cls, rpn_box=box)


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
    random order (one draw for all images), without `use_deltas` they are the anchors.
    `nms_iou=1` is no NMS.
    """
    ranges.check(
        "proposals",
        use_scores=(use_scores, ranges.TRUTH),
        use_deltas=(use_deltas, ranges.TRUTH),
    )
    if not use_scores:
        order = jax.random.uniform(jax.random.key(0), out.deltas.shape[1:2])
        out = out._replace(logits=jnp.broadcast_to(order, out.deltas.shape[:2]))
    if not use_deltas:
        out = out._replace(deltas=jnp.zeros_like(out.deltas))
    select = partial(proposals.select_proposals, level_sizes=out.level_sizes, **kwargs)
    return jax.vmap(select, (None, 0, 0, 0))(
        out.anchors, out.logits, out.deltas, image_size
    )


def stage_proposals(stage: Stage, batch: Batch, **kwargs: Any) -> Proposals:
    """The RPN's proposals, or those that came with the batch."""
    if stage.rpn is None:
        return external_proposals(batch)
    return rpn_proposals(stage.rpn, batch.image_size, **kwargs)


def external_proposals(batch: Batch) -> Proposals:
    """The proposals that came with the batch; ValueError where none did."""
    if batch.proposals is None:
        raise ValueError(
            "model.external_proposals=True needs proposals with every image: set "
            "data.proposals=FILE (scripts/make_proposals.py writes one)"
        )
    return batch.proposals


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    trainable: PyTree,
    config: Mapping[str, Any],
    axis_name: str | None = "batch",
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update of the `trainable` parameters, gradients averaged over `axis_name`.

    Under `jax.shard_map` and `jax.pmap` each device differentiates its own images: the
    parameters are cast to varying before the gradient. JAX would else sum the gradients
    over the devices by itself, and their mean would be the sum.

    Frozen parameters are not differentiated; if they are the first layers, the backward
    pass ends before them. `config["accumulate"]` cuts the batch into so many parts, one
    at a time in memory. `config["ema_decay"]` keeps the running mean of the parameters.

    The metrics are the losses (`total` is their weighted sum), `roi_positive`, the
    share of the sampled RoIs that are objects, `fg_accuracy`, the share of those whose
    class has the highest score (0 where there are none), and the norms of the gradient
    (before clipping) and of the update, whole and by part of the network.
    """
    chosen = keep(state.params, trainable)

    def loss_fn(chosen, model_state, batch):
        def compute(model):
            keys = image_keys(key, state.step, batch.index)
            stage = first_stage(model, batch, keys)
            return image_losses(model, stage, batch, keys, config)

        # Only what is mutable here follows the batch: see models.layers.BatchNorm.
        (terms, counts), model_state = model.apply(
            {"params": merge(chosen, state.params), **model_state},
            method=compute,
            mutable=list(model_state),
        )
        means = {
            name: x.mean(dtype=jnp.float32) for name, x in (terms | counts).items()
        }
        total = sum(config["loss_weights"][name] * means[name] for name in terms)
        return total, (dict(means, total=total), dict(model_state))

    gradient = jax.grad(loss_fn, has_aux=True)
    if (parts := config["accumulate"]) > 1:
        gradient = partial(accumulated, gradient, parts=parts)
    own = varying(chosen, axis_name), varying(state.model_state, axis_name)
    grads, (metrics, model_state) = gradient(own[0], own[1], batch)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        # What has not moved keeps its bits: old + mean(0) does, mean(old) may not.
        model_state = jax.tree.map(
            lambda old, new: old + jax.lax.pmean(new - old, axis_name),
            state.model_state,
            model_state,
        )
    updates, opt_state = optimizer.update(grads, state.opt_state, chosen)
    params = merge(optax.apply_updates(chosen, updates), state.params)
    ema_params = state.ema_params
    if ema_params is not None:
        step, decay = state.step + 1, config["ema_decay"]
        ema_params = running_mean(ema_params, params, step, decay=decay)
    state = TrainState(state.step + 1, params, model_state, opt_state, ema_params)
    metrics |= roi_shares(metrics)
    return state, metrics | norms("grad_norm", grads) | norms("update_norm", updates)


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """`tree` as a copy of each device along `axis_name`; None: there is no such axis.

    The values stay, the type changes: under `jax.shard_map` a gradient by what all
    devices share is summed over them, one by a device's copy is its own. Unlike
    `lax.pcast` it takes what varies already, and runs under `vmap` and `pmap`.
    """
    if axis_name is None:
        return tree
    return modes.carry(tree, jax.lax.axis_index(axis_name))


def accumulated(
    gradient: Callable, chosen: PyTree, model_state: PyTree, batch: Batch, *, parts: int
) -> tuple[PyTree, Any]:
    """`gradient(chosen, model_state, batch)` as the mean over `parts` of the batch.

    The parts are equally large, so the gradient and the metrics are those of the whole
    batch. Batch statistics go from part to part. Raises ValueError where the images
    cannot be divided.
    """
    images = len(batch.index)
    if images % parts:
        good = [n for n in range(1, images + 1) if images % n == 0]
        raise ValueError(
            f"accumulate={parts} does not divide the {images} images of a device: use "
            f"one of {good}, or another batch_size"
        )

    def add(carry, part):
        total, model_state = carry
        grads, (metrics, model_state) = gradient(chosen, model_state, part)
        return (jax.tree.map(jnp.add, total, grads), model_state), metrics

    zeros = modes.carry(jax.tree.map(jnp.zeros_like, chosen), (chosen, batch))
    (total, model_state), metrics = jax.lax.scan(
        add,
        (zeros, model_state),
        jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch),
    )
    grads = jax.tree.map(lambda x: x / parts, total)
    return grads, (jax.tree.map(lambda x: x.mean(0), metrics), model_state)


def roi_shares(counts: dict[str, Any]) -> dict[str, Any]:
    """`roi_positive` and `fg_accuracy` in place of the counts that they come from."""
    sampled, positive, correct = (
        counts.pop(name) for name in ("sampled", "positive", "correct")
    )
    # The counts are whole numbers or means of them; 0 / 0 is 0.
    return dict(
        roi_positive=positive / jnp.maximum(sampled, 1e-9),
        fg_accuracy=correct / jnp.maximum(positive, 1e-9),
    )


def norms(name: str, tree: Any) -> dict[str, Float[Array, ""]]:
    """The norm of a tree and of each of its parts that has leaves: `NAME_backbone`."""
    squares = {
        part: optax.tree.norm(leaves, squared=True)
        for part, leaves in tree.items()
        if jax.tree.leaves(leaves)
    }
    by_part = {f"{name}_{part}": jnp.sqrt(x) for part, x in squares.items()}
    return {
        name: jnp.sqrt(sum(squares.values(), jnp.zeros((), jnp.float32))),
        **by_part,
    }


def predict_step(
    variables: PyTree, batch: Batch, *, model: Any, config: Mapping[str, Any]
) -> Detections:
    """Detections `[b, max_detections]` in network pixels.

    Reads only image, size and, for a FastRCNN, proposals.
    """

    def predict(model):
        stage = first_stage(model, batch)
        props = stage_proposals(stage, batch, **config["proposals"]["eval"])
        return detect(model, stage, props, batch, config)

    return model.apply(variables, method=predict)


def detect(
    model: Any,
    stage: Stage,
    props: Proposals,
    batch: Batch,
    config: Mapping[str, Any],
) -> Detections:
    """The second stage on `props`: Detections `[b, max_detections]`."""
    class_logits, class_deltas = model.detect(stage.features, props.boxes)
    return jax.vmap(partial(proposals.postprocess, **config["postprocess"]))(
        props.boxes, props.valid, class_logits, class_deltas, batch.image_size
    )


def propose_step(
    variables: PyTree, batch: Batch, *, model: Any, config: Mapping[str, Any]
) -> Proposals:
    """Proposals of a FasterRCNN as `predict_step` uses them, in network pixels."""

    def propose(model):
        out = model.rpn(model.normalize(batch.image, batch.image_size))
        return rpn_proposals(out, batch.image_size, **config["proposals"]["eval"])

    return model.apply(variables, method=propose)
