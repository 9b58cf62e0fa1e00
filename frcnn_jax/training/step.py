"""One training step and one prediction: the whole algorithm on one page.

b images, a anchors, g ground-truth slots, r RoIs. `model` is a bound FasterRCNN, or a
FastRCNN, whose proposals come with the batch; the configuration groups are the keyword
arguments of the functions they are named after.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from frcnn_jax import losses, proposals, targets
from frcnn_jax.models import FasterRCNN, RPNOutput
from frcnn_jax.types import Batch, Detections, Proposals


class TrainState(NamedTuple):
    """Arrays only; the model and the optimizer are closed over, not stored."""

    step: Int[Array, ""]
    params: PyTree  # {"backbone": ..., "fpn": ..., "rpn_head": ..., "box_head": ...}
    model_state: PyTree  # batch statistics; unchanged while they are frozen
    opt_state: PyTree  # of the trainable parameters only


def image_keys(key: Array, step: Int[Array, ""], index: Int[Array, " b"]) -> Array:
    """Three keys an image, `[b, 3]`, from the run's key, the step and the example.

    They depend on the example's place in its data set, not on the device that holds it,
    so that any number of devices draws the same samples.
    """
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(at_step, i), 3))(
        index
    )


def train_losses(
    model: Any, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> dict[str, Float[Array, ""]]:
    """Four losses of approximate joint training (Faster R-CNN, Sec. 3.2).

    The proposals are constants for the second stage: the gradient with respect to their
    coordinates is stopped. A FastRCNN has the last two losses only, and the batch's
    proposals. Returns losses and changes nothing, so it serves validation as well.
    Normalisers are fixed (samples per image, then the mean over images): the mean over
    devices equals the value of one device with the whole batch.
    """
    images = model.normalize(batch.image, batch.image_size)
    terms = {}
    if isinstance(model, FasterRCNN):
        out = model.rpn(images)
        terms = rpn_losses(out, batch, keys[:, 0], config)
        features = out.features
        props = rpn_proposals(out, batch.image_size, **config["proposals"]["train"])
    else:
        features, props = model.features(images), external_proposals(batch)
    rois = jax.vmap(partial(targets.roi_targets, **config["roi_targets"]))(
        keys[:, 1],
        props,
        batch.gt_boxes,
        batch.gt_classes,
        batch.gt_valid,
        batch.gt_ignore,
    )
    class_logits, class_deltas = model.detect(features, rois.boxes, keys[:, 2])
    terms["roi_cls"], terms["roi_box"] = losses.detector_loss(
        class_logits,
        class_deltas,
        rois.labels,
        rois.deltas,
        normalizer=len(batch.image) * config["roi_targets"]["num_samples"],
        **config["detector_loss"],
    )
    return terms


def rpn_losses(
    out: RPNOutput, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> dict[str, Float[Array, ""]]:
    """Eq. (1) of each image, averaged over the images.

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
    return dict(rpn_cls=cls.mean(), rpn_box=box.mean())


def rpn_proposals(
    out: RPNOutput,
    image_size: Int[Array, "b 2"],
    *,
    use_scores: bool = True,
    use_deltas: bool = True,
    **kwargs: Any,
) -> Proposals:
    """Proposals `[b, post_nms]` of the RPN; `kwargs` as for `select_proposals`.

    Table 2 takes away one or the other output of the RPN: without `use_scores` boxes
    come in a random order (one draw for all images), without `use_deltas` they are the
    anchors. `nms_iou=1` is no NMS.
    """
    if not use_scores:
        order = jax.random.uniform(jax.random.key(0), out.deltas.shape[1:2])
        out = out._replace(logits=jnp.broadcast_to(order, out.deltas.shape[:2]))
    if not use_deltas:
        out = out._replace(deltas=jnp.zeros_like(out.deltas))
    select = partial(proposals.select_proposals, level_sizes=out.level_sizes, **kwargs)
    return jax.vmap(select, (None, 0, 0, 0))(
        out.anchors, out.logits, out.deltas, image_size
    )


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

    Frozen parameters are not differentiated at all: where they open the network, their
    backward pass is never computed.
    """
    keys = image_keys(key, state.step, batch.index)
    chosen = keep(state.params, trainable)

    def loss_fn(chosen):
        variables = {"params": merge(chosen, state.params), **state.model_state}
        terms = model.apply(variables, batch, keys, config, method=train_losses)
        total = sum(config["loss_weights"][name] * terms[name] for name in terms)
        return total, terms

    (total, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(chosen)
    metrics = dict(terms, total=total)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, chosen)
    params = merge(optax.apply_updates(chosen, updates), state.params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["update_norm"] = optax.tree.norm(updates)
    return state._replace(
        step=state.step + 1, params=params, opt_state=opt_state
    ), metrics


def predict_step(
    variables: PyTree, batch: Batch, *, model: Any, config: Mapping[str, Any]
) -> Detections:
    """Detections `[b, max_detections]` in network pixels.

    Reads only image, size and, for a FastRCNN, proposals.
    """

    def detect(model):
        images = model.normalize(batch.image, batch.image_size)
        if isinstance(model, FasterRCNN):
            out = model.rpn(images)
            features = out.features
            props = rpn_proposals(out, batch.image_size, **config["proposals"]["eval"])
        else:
            features, props = model.features(images), external_proposals(batch)
        class_logits, class_deltas = model.detect(features, props.boxes)
        return jax.vmap(partial(proposals.postprocess, **config["postprocess"]))(
            props.boxes, props.valid, class_logits, class_deltas, batch.image_size
        )

    return model.apply(variables, method=detect)


def propose_step(
    variables: PyTree, batch: Batch, *, model: Any, config: Mapping[str, Any]
) -> Proposals:
    """Proposals of a FasterRCNN as `predict_step` uses them, in network pixels."""

    def propose(model):
        out = model.rpn(model.normalize(batch.image, batch.image_size))
        return rpn_proposals(out, batch.image_size, **config["proposals"]["eval"])

    return model.apply(variables, method=propose)


def keep(tree: PyTree, mask: PyTree) -> PyTree:
    """The leaves where `mask` is true, None elsewhere."""
    return jax.tree.map(lambda leaf, m: leaf if m else None, tree, mask)


def merge(chosen: PyTree, tree: PyTree) -> PyTree:
    """`chosen` where it has a leaf, `tree` where it has None."""
    return jax.tree.map(
        lambda c, t: t if c is None else c, chosen, tree, is_leaf=lambda x: x is None
    )


def initial_state(
    key: Array,
    image_shape: tuple[int, int, int],
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    trainable: PyTree | None = None,
    variables: dict[str, PyTree] | None = None,
) -> TrainState:
    """A fresh state at step 0; `variables` replace the drawn ones where given."""
    if variables is None:
        variables = init_variables(key, image_shape, model=model)
    variables = {**variables}
    params = variables.pop("params")
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(keep(params, trainable)),
    )


def init_variables(
    key: Array, image_shape: tuple[int, int, int], *, model: Any
) -> dict[str, PyTree]:
    """Random parameters and batch statistics for images `[h, w, 3]`."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return dict(jax.jit(model.init)(key, images))
