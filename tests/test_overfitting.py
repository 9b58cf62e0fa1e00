"""Eight photographs learnt by heart: every part of training works on real images."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from experiments import common
from frcnn_jax.data.sources import coco
from frcnn_jax.training.loop import train_and_evaluate

SIDE = 256
LOAD = coco.load


def eight(**kwargs):
    """The first eight without crowds whose objects all have 20 pixels a side or more.

    The side is that of a square of the same area, in pixels of the network.
    """
    source = LOAD(**kwargs)

    def suits(example):
        sides = np.sqrt((example.boxes[:, 2:] - example.boxes[:, :2]).prod(1))
        large = len(sides) and sides.min() * SIDE / max(example.size) >= 20
        return large and not example.ignore.any()

    return dataclasses.replace(source, examples=[e for e in source if suits(e)][:8])


@pytest.mark.slow
def test_eight_photographs_of_coco_are_learnt_by_heart(shared, tmp_path, monkeypatch):
    """A small network from random weights, 300 steps: AP of 80 classes at least 0.9."""
    monkeypatch.setattr(coco, "load", eight)
    c = ml_collections.ConfigDict()
    c.update(common.run(batch_size=4, total_steps=300))
    c.update(common.faster_rcnn())
    c.data = common.data(
        "coco",
        root=str(shared / "data" / "coco_mini"),
        train_split="train2017",
        eval_split="train2017",
        short_side=SIDE,
        max_side=SIDE,
        canvas=(SIDE, SIDE),
        max_boxes=16,
        flip=False,
        cache=True,
    )
    c.model = dict(
        backbone=dict(name="tiny", widths=(32, 64, 96, 128), out_strides=(8, 16, 32)),
        fpn=dict(channels=64),
        anchors=dict(
            strides=(8, 16, 32, 64), sizes=(32.0, 64.0, 128.0, 256.0), offset=0.5
        ),
        rpn=dict(channels=64),
        roi_align=dict(strides=(8, 16, 32)),
        box_head=dict(widths=(256,)),
    )
    c.rpn_targets.num_samples = 64
    c.roi_targets.update(num_samples=64, fg_fraction=0.5)
    for part in ("train", "eval"):
        c.proposals[part].update(pre_nms=300, post_nms=100)
    c.postprocess.max_detections = 50
    c.optimizer = dict(
        name="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=20,
        warmup_factor=0.1,
    )
    result = train_and_evaluate(c, tmp_path)
    assert result["AP"] >= 0.9
    assert result["proposal_AR100"] >= 0.8
    assert result["fg_accuracy"] >= 0.95
