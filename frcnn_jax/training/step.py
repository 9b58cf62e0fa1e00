"""One training step and one prediction, of whatever algorithm.

What is learnt and detected stands in `algorithms`: `algorithms/faster_rcnn.py` is
Faster R-CNN on one page. b images.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from frcnn_jax.ops import modes
from frcnn_jax.training import algorithms
from frcnn_jax.training.state import TrainState, keep, merge, running_mean
from frcnn_jax.types import Batch, Detections, Proposals


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
    """The losses of the algorithm, means over the images.

    Of Faster R-CNN the four of approximate joint training (Sec. 3.2).
    """
    terms, _ = image_losses(model, batch, keys, config)
    return {name: term.mean() for name, term in terms.items()}


def image_losses(
    model: Any, batch: Batch, keys: Array, config: Mapping[str, Any]
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Int[Array, " b"]]]:
    """The losses of each image, and counts of its RoIs (`fast_rcnn.counts`)."""
    algorithm = algorithms.of(config)
    stage = algorithm.first_stage(model, batch, keys)
    return algorithm.image_losses(model, stage, batch, keys, config)


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
    weigh = partial(weighted_loss, state, key=key, model=model, config=config)
    gradient = jax.grad(weigh, has_aux=True)
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


def weighted_loss(
    state: TrainState,
    chosen: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: Array,
    model: Any,
    config: Mapping[str, Any],
) -> tuple[Any, tuple[dict[str, Any], dict[str, PyTree]]]:
    """What is differentiated by `chosen`: the sum of the losses by `loss_weights`.

    And its terms and counts, means over the images, and the batch statistics after it.
    """

    def compute(model):
        keys = image_keys(key, state.step, batch.index)
        return image_losses(model, batch, keys, config)

    # Only what is mutable here follows the batch: see models.layers.BatchNorm.
    (terms, counts), model_state = model.apply(
        {"params": merge(chosen, state.params), **model_state},
        method=compute,
        mutable=list(model_state),
    )
    means = {name: x.mean(dtype=jnp.float32) for name, x in (terms | counts).items()}
    total = sum(config["loss_weights"][name] * means[name] for name in terms)
    return total, (dict(means, total=total), dict(model_state))


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
    algorithm = algorithms.of(config)

    def predict(model):
        stage = algorithm.first_stage(model, batch)
        props = algorithm.propose(stage, batch, **config["proposals"]["eval"])
        return algorithm.detect(model, stage, props, batch, config)

    return model.apply(variables, method=predict)


def propose_step(
    variables: PyTree, batch: Batch, *, model: Any, config: Mapping[str, Any]
) -> Proposals:
    """The proposals that `predict_step` uses, in network pixels."""
    algorithm = algorithms.of(config)

    def propose(model):
        stage = algorithm.first_stage(model, batch)
        return algorithm.propose(stage, batch, **config["proposals"]["eval"])

    return model.apply(variables, method=propose)
