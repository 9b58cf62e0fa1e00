"""What the RPN examples share: pictures of shapes, anchors, and a yardstick."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import frcnn_jax as frcnn
from frcnn_jax.data import pipeline
from frcnn_jax.training.compiling import Announced

SIDE, STRIDE, K = 64, 8, 3  # pixels, pixels a cell, anchors a cell
ANCHORS = frcnn.anchors.grid(
    frcnn.anchors.cell_anchors((10.0, 18.0, 28.0), (1.0,)),
    (SIDE // STRIDE, SIDE // STRIDE),
    STRIDE,
    offset=0.5,
)  # [a, 4], a = 8 * 8 * 3, ordered (y, x, anchor)


def shapes(*, batch_size: int = 8, side: int = SIDE) -> pipeline.Data:
    """Endless training batches and 40 images to evaluate on, `side` pixels each way."""
    return pipeline.build(
        "shapes",
        train_split="train",
        eval_split="val[:40]",
        batch_size=batch_size,
        eval_batch_size=8,
        seed=0,
        size=side,
        short_side=side,
        max_side=side,
        canvas=(side, side),
        max_boxes=8,
    )


def recall(data: pipeline.Data, rpn: Callable, *, iou: float = 0.5) -> float:
    """The share of objects that one of 10 proposals covers; `rpn`: images -> outputs.

    The outputs are objectness logits `[b, a]` and box deltas `[b, a, 4]`.
    """

    def best(image, gt_boxes):
        logits, deltas = rpn(image)
        props = jax.vmap(
            lambda logits, deltas: frcnn.proposals.select_proposals(
                ANCHORS, logits, deltas, jnp.array([SIDE, SIDE]), post_nms=10
            )
        )(logits, deltas)
        return jax.vmap(frcnn.boxes.iou)(props.boxes, gt_boxes).max(axis=1)

    find = Announced(jax.jit(best), "the evaluation")
    found = [
        np.asarray(find(pixels(b.image), b.gt_boxes))[b.gt_valid & b.valid[:, None]]
        for b in data.eval_batches()
    ]
    return float(np.mean(np.concatenate(found) >= iou))


def pixels(image: np.ndarray) -> np.ndarray:
    """Pixels from -1 to 1."""
    return image.astype(np.float32) / 127.5 - 1
