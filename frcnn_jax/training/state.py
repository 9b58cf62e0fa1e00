"""What training carries from step to step, and the parts of a tree of parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


class TrainState(NamedTuple):
    """Arrays only; the model and the optimizer are closed over, not stored."""

    step: Int[Array, ""]
    params: PyTree  # {"backbone": ..., "fpn": ..., "rpn_head": ..., "box_head": ...}
    model_state: PyTree  # batch statistics; unchanged while they are frozen
    opt_state: PyTree  # of the trainable parameters only
    ema_params: PyTree = None  # the running mean of params, None where not asked for


def initial_state(
    key: Array,
    image_shape: tuple[int, int, int],
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    trainable: PyTree | None = None,
    variables: dict[str, PyTree] | None = None,
    ema: bool = False,
) -> TrainState:
    """A fresh state at step 0; `variables` replace the drawn ones where given.

    `ema` asks for `ema_params`, which begin as the parameters.
    """
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
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def eval_variables(state: TrainState) -> dict[str, PyTree]:
    """What predicts: the running mean of the parameters where there is one."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, **state.model_state}


def init_variables(
    key: Array, image_shape: tuple[int, int, int], *, model: Any
) -> dict[str, PyTree]:
    """Random parameters and batch statistics for images `[h, w, 3]`."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return dict(jax.jit(model.init)(key, images))


def running_mean(
    mean: PyTree, params: PyTree, step: Int[Array, ""], *, decay: float
) -> PyTree:
    """`mean + (1 - d) (params - mean)` with d = min(decay, (1 + step) / (10 + step)).

    `step` counts from 1; the rising d forgets the random start in a short run too.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda m, p: m + (1 - d) * (p - m), mean, params)


def keep(tree: PyTree, mask: PyTree) -> PyTree:
    """The leaves where `mask` is true, None elsewhere."""
    return jax.tree.map(lambda leaf, m: leaf if m else None, tree, mask)


def merge(chosen: PyTree, tree: PyTree) -> PyTree:
    """`chosen` where it has a leaf, `tree` where it has None."""
    return jax.tree.map(
        lambda c, t: t if c is None else c, chosen, tree, is_leaf=lambda x: x is None
    )
