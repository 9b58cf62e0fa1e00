"""A box loss of your own for the second stage: 1 - GIoU in place of smooth L1.

    python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/giou \
        --config.roi_box_loss.name=examples.giou_loss.giou_box_loss

`roi_box_loss.name=giou` is the same loss; docs/howto/own-loss.md explains this one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

import frcnn_jax as frcnn


def giou_box_loss(
    rows: frcnn.roi_losses.BoxRows, *, normalizer: float
) -> Float[Array, ""]:
    """`1/N sum [u >= 1] (1 - GIoU(box, target))` over the RoIs of one image."""
    loss = frcnn.losses.giou_loss(rows.boxes, rows.target_boxes)
    return jnp.where(rows.used, loss, 0.0).sum() / normalizer
