r"""The demo: a small Faster R-CNN learns shapes from scratch on a CPU, no download.

    make demo

or

    python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/shapes
    python scripts/evaluate.py --checkpoint=runs/shapes --split=test --pictures=12

Sweeps: `scripts/sweep.py --sweep=rate`, grid, random or (a search) optimizer.

Measured on two Xeon cores, 2026-11-24: 2 min 30 s with both evaluations, without the
installation; on the 200 test images AP 0.869, AP50 0.983; the same
day on two EPYC cores, at commit 1907600, AP 0.863, AP50 0.981; on 2026-11-25, at
commit 0e9e7fc, AP 0.861, AP50 0.977.
"""

import itertools
import random
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False)
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=8, total_steps=10 if args["runlocal"] else 1000))
    c.update(common.faster_rcnn())

    c.data = common.data(
        "shapes",
        train_split="train",
        eval_split="val",
        short_side=128,
        max_side=128,
        canvas=(128, 128),
        max_boxes=8,
    )
    c.model = dict(  # models.build_detector
        backbone=dict(name="tiny", widths=(24, 48, 64, 96)),
        fpn=dict(channels=64),
        anchors=dict(
            strides=(4, 8, 16, 32), sizes=(12.0, 24.0, 40.0, 64.0), offset=0.5
        ),
        rpn=dict(channels=64),
        roi_align=dict(strides=(4, 8)),
        box_head=dict(widths=(256,)),
        dtype="float32",
    )
    c.rpn_targets.num_samples = 64
    c.roi_targets.num_samples = 64
    c.proposals.train.update(pre_nms=200, post_nms=200)
    c.proposals.eval.update(pre_nms=200, post_nms=100)
    c.postprocess.max_detections = 20
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="adamw",
        learning_rate=2e-3,
        reference_batch=0,  # any batch has this rate
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=50,
        warmup_factor=0.1,
    )
    return c


# What scripts/sweep.py runs with --sweep=NAME: each yields the leaves a trial changes.


def sweep_rate():
    """A list: three learning rates."""
    for rate in (1e-3, 2e-3, 4e-3):
        yield {"optimizer.learning_rate": rate}


def sweep_grid():
    """A grid: each rate with each weight decay, three seeds."""
    for rate, decay, seed in itertools.product((1e-3, 2e-3), (1e-4, 1e-2), range(3)):
        yield {
            "optimizer.learning_rate": rate,
            "optimizer.weight_decay": decay,
            "seed": seed,
        }


def sweep_random():
    """Twelve random draws, the same ones in every call."""
    draw = random.Random(0)
    for _ in range(12):
        yield {
            "optimizer.learning_rate": 10 ** draw.uniform(-3.5, -2),
            "rpn_targets.num_samples": draw.choice((32, 64, 128)),
        }


def search_optimizer(trial):
    """A search with Optuna; with --config.eval_every=200 poor trials end early."""
    return {
        "optimizer.learning_rate": trial.suggest_float("rate", 1e-4, 1e-2, log=True),
        "optimizer.warmup_steps": trial.suggest_int("warmup", 0, 200, step=50),
        "optimizer.schedule": trial.suggest_categorical(
            "schedule", ("cosine", "constant")
        ),
    }
