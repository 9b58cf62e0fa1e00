"""A box loss of your own for the second stage: 1 - GIoU in place of smooth L1.

It is written for one image; `jax.vmap` makes the batch. docs/howto/own-loss.md says
where it is called.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import frcnn_jax as frcnn


def giou_box_loss(
    class_deltas: Float[Array, "r d 4"],
    boxes: Float[Array, "r 4"],
    labels: Int[Array, " r"],
    target_deltas: Float[Array, "r 4"],
    *,
    normalizer: float,
    stds: tuple[float, float, float, float],
) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - GIoU(box, target))` over the RoIs of one image.

    `normalizer` N is a constant, the number of sampled RoIs, so that the mean over
    images and devices is that of the whole batch. Rows that are background, ignored or
    padding (labels u < 1) have no value and no gradient, whatever they hold.
    """
    found = labels >= 1
    row = jnp.clip(labels - 1, 0, class_deltas.shape[-2] - 1)[:, None, None]
    deltas = jnp.take_along_axis(class_deltas, row, axis=-2)[:, 0]
    deltas, wanted = (jnp.where(found[:, None], x, 0) for x in (deltas, target_deltas))
    boxes = jnp.where(found[:, None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0]))
    decode = partial(frcnn.boxes.decode, anchors=boxes, stds=stds)
    loss = frcnn.losses.giou_loss(decode(deltas), decode(wanted))
    return jnp.where(found, loss, 0.0).sum() / normalizer
