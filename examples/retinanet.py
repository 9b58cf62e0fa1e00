"""A one-stage detector (RetinaNet, arXiv:1708.02002) made of this package's parts.

python -m examples.retinanet

Anchors, matching, focal loss, smooth L1 and class-wise NMS are ours, backbone and FPN
those of the demo; what is new is the head and the two functions below it.

Measured (two EPYC cores, busy, 2026-11-24, one run): 600 steps of 8 pictures of 64 x 64
pixels in 51 s of CPU time give AP 0.240 and AP50 0.379 on 40 pictures never seen.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import frcnn_jax as frcnn
from examples.toy import pixels, shapes
from frcnn_jax.data.source import image_ids
from frcnn_jax.data.sources.coco import to_coco
from frcnn_jax.evaluation import coco, files
from frcnn_jax.models.fpn import FPN
from frcnn_jax.models.tiny import Backbone
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.types import Detections

SIDE, CLASSES = 64, 4
STRIDES, SIZES = (4, 8), ((8, 10, 13), (16, 20, 26))
ANCHORS = frcnn.anchors.pyramid(
    [(SIDE // s, SIDE // s) for s in STRIDES], STRIDES, SIZES, (1.0,), offset=0.5
)
K, STDS = 3, (0.1, 0.1, 0.2, 0.2)


class RetinaNet(nn.Module):
    """Images [b, h, w, 3] -> class logits [b, a, C] and box deltas [b, a, 4]."""

    @nn.compact
    def __call__(self, images):
        features = Backbone(widths=(24, 48))(images)
        maps = FPN(channels=48, pool_levels=0)(features)
        convs = [[nn.Conv(48, (3, 3)) for _ in range(2)] for _ in "cb"]
        prior = nn.initializers.constant(-np.log(99.0))  # objects are 1 in 100
        heads = [nn.Conv(K * CLASSES, (3, 3), bias_init=prior), nn.Conv(K * 4, (3, 3))]
        outputs = []
        for tower, head in zip(convs, heads, strict=True):  # shared by all levels
            levels = []
            for x in maps.values():
                for conv in tower:
                    x = nn.relu(conv(x))
                x = head(x)
                levels.append(x.reshape(len(x), -1, x.shape[-1] // K))
            outputs.append(jnp.concatenate(levels, axis=1))
        return outputs


def network(params, images) -> Any:
    return RetinaNet().apply(params, images)


def loss_fn(params, images, gt_boxes, gt_classes, gt_valid):
    """Focal loss of all anchors but the ignored, smooth L1 of those with an object."""
    logits, deltas = network(params, images)
    matches = jax.vmap(
        partial(frcnn.matching.match, fg_iou=0.5, bg_iou=0.4, force_best=True),
        (None, 0, 0),
    )(ANCHORS, gt_boxes, gt_valid)
    found = matches.labels == 1
    classes = jnp.take_along_axis(gt_classes, matches.gt_index, axis=1)
    boxes = jnp.take_along_axis(gt_boxes, matches.gt_index[..., None], axis=1)
    one_hot = jax.nn.one_hot(jnp.where(found, classes - 1, -1), CLASSES)
    focal = frcnn.losses.sigmoid_focal_loss(logits, one_hot).sum(axis=-1)
    wanted = jax.vmap(partial(frcnn.boxes.encode, stds=STDS), (0, None))(boxes, ANCHORS)
    off = jnp.where(found[..., None], deltas - wanted, 0.0)  # select, then compute
    smooth = frcnn.losses.smooth_l1(off, beta=1 / 9).sum(axis=-1)
    count = jnp.maximum(found.sum(), 1)
    return (jnp.where(matches.labels >= 0, focal, 0.0).sum() + smooth.sum()) / count


def detect(logits, deltas):
    """One image: the 200 best pairs of anchor and class, then class-wise NMS."""
    scores, index = jax.lax.top_k(jax.nn.sigmoid(logits).ravel(), 200)
    anchor, label = index // CLASSES, index % CLASSES
    boxes = frcnn.boxes.decode(deltas[anchor], ANCHORS[anchor], stds=STDS)
    boxes = frcnn.boxes.clip(boxes, (SIDE, SIDE))
    best, valid = frcnn.nms.nms_indices(
        boxes, scores, scores > 0.05, iou_threshold=0.5, max_output=20, classes=label
    )
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[best], 0),
        scores=jnp.where(valid, scores[best], 0),
        classes=jnp.where(valid, label[best] + 1, 0),
        valid=valid,
    )


def evaluate(params, data) -> dict:
    """COCO metrics on the evaluation images."""
    predict = jax.jit(lambda p, x: jax.vmap(detect)(*network(p, pixels(x))))
    predict = Announced(predict, "the evaluation")
    ids, results = image_ids(data.eval), []
    for batch in data.eval_batches():
        found = jax.device_get(predict(params, batch.image))
        for i in np.flatnonzero(batch.valid):
            results += files.to_results(
                Detections(*(field[i] for field in found)),
                ids[batch.index[i]],
                batch.image_size[i],
                batch.original_size[i],
                data.eval.category_ids,
            )
    return coco.evaluate(to_coco(data.eval), results)


def main(steps: int = 600) -> dict:
    """Train on shapes from scratch, return the metrics."""
    data = shapes(side=SIDE)
    params = RetinaNet().init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    optimizer = optax.adamw(schedule)
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, *batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    train = Announced(update, "the training step")
    for step, b in zip(range(steps), data.train_batches(), strict=False):
        params, opt_state, loss = train(
            params, opt_state, pixels(b.image), b.gt_boxes, b.gt_classes, b.gt_valid
        )
        if step % 50 == 0:
            print(f"step {step}  loss {loss:.3f}", flush=True)
    result = evaluate(params, data)
    print(coco.format_table(result))
    return result


if __name__ == "__main__":
    log_to_stderr()
    main(*map(int, sys.argv[1:]))
