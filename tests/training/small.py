"""A model and a configuration small enough to train a few steps in a test."""

import jax
import ml_collections
import numpy as np

from experiments import common
from frcnn_jax.types import Batch

CANVAS = (64, 64)


def config(**leaves) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=4))
    c.update(common.faster_rcnn())
    c.data = dict(
        name="shapes",
        train_split="train[:6]",
        eval_split="val[:3]",
        size=64,
        short_side=64,
        max_side=64,
        canvas=CANVAS,
        max_boxes=6,
        flip=True,
    )
    c.model = dict(
        backbone=dict(name="tiny", widths=(8, 8), groups=4),
        fpn=dict(channels=8),
        anchors=dict(strides=(4, 8), sizes=(16.0, 32.0)),
        rpn=dict(channels=8),
        roi_align=dict(strides=(4, 8), output_size=3),
        box_head=dict(widths=(16,)),
    )
    c.rpn_targets.num_samples = 16
    c.roi_targets.num_samples = 16
    for part in ("train", "eval"):
        c.proposals[part].update(pre_nms=50, post_nms=20)
    c.postprocess.max_detections = 10
    c.optimizer = dict(name="sgd", learning_rate=0.02, schedule="constant")
    c.log_every = 1
    for name, value in leaves.items():
        c[name] = value
    return c


def batch(seed: int = 0, *, images: int = 2, boxes: int = 2, slots: int = 4) -> Batch:
    """Random pixels with `boxes` ground-truth boxes an image, the rest is padding."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (images, slots, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(12, 30, corner.shape)], -1)
    valid = np.zeros((images, slots), bool)
    valid[:, :boxes] = True
    size = np.full((images, 2), 64, np.int32)
    size[0] = (48, 64)
    return Batch(
        image=rng.integers(0, 256, (images, *CANVAS, 3), np.uint8),
        image_size=size,
        original_size=size,
        gt_boxes=np.where(valid[..., None], gt_boxes, 0).astype(np.float32),
        gt_classes=np.where(valid, rng.integers(1, 4, valid.shape), 0).astype(np.int32),
        gt_valid=valid,
        gt_ignore=np.zeros_like(valid),
        index=np.arange(images, dtype=np.int32) + 10,
        valid=np.ones(images, bool),
    )


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
