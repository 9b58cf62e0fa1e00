r"""Blood cells (BCCD) with Cascade R-CNN: `bccd_r50_fpn.py` with three box heads.

    python scripts/train.py --config=experiments/bccd_cascade.py:runlocal \
        --workdir=runs/bccd_cascade --config.data.root=BCCD_FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/evaluate.py --checkpoint=runs/bccd_cascade

Arguments: those of `bccd_r50_fpn.py` (`:runlocal`, `:weights=timm`), which has the
same data, backbone and number of steps: what differs is the cascade, with its stage
weights 1, 1/2, 1/4. GIoU in place of smooth L1: `--config.roi_box_loss.name=giou`.

Ours: this file was not run. By `finetune.py`'s recipe at equal steps, on three folds of
the training photographs: AP 0.592, 0.591, 0.616 (mean 0.600) of the cascade, 0.549,
0.560, 0.586 (0.565) of one box head, +3.7 (+2.8 to +4.6); with Soft-NMS 0.607 and 0.576
(docs/results.md; 400 steps, two cores of an AMD EPYC, 2026-11-30).
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, weights="keras")
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.run(batch_size=2 if local else 8, total_steps=1000 if local else 2000)
    )
    c.update(common.faster_rcnn())
    c.eval_every = 500
    c.checkpoint_every = 250
    c.frozen = common.RESNET_FROZEN
    if local:
        c.frozen += ("backbone/layer2",)

    c.data = common.data(
        "voc",
        train_split="train",
        eval_split="val",
        short_side=300 if local else 600,
        max_side=400 if local else 800,
        canvas=(320, 416) if local else (608, 800),
        max_boxes=64,
        cache=True,
    )
    c.model = dict(  # models.build_detector
        common.imagenet_resnet50(args["weights"]),
        fpn=dict(channels=256),
        anchors=dict(
            strides=(4, 8, 16, 32, 64),
            sizes=(16.0, 32.0, 64.0, 128.0, 256.0)
            if local
            else (32.0, 64.0, 128.0, 256.0, 512.0),
        ),
    )
    c.roi_targets.num_samples = 128 if local else 256
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(pre_nms=1000, post_nms=300)
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.02,
        reference_batch=8,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=50 if local else 200,
    )
    common.cascade(c)
    return c


def sweep_seeds() -> Iterator[dict[str, Any]]:
    """Three runs that differ by chance alone."""
    for seed in (0, 1, 2):
        yield {"seed": seed}


def sweep_prediction() -> Iterator[dict[str, Any]]:
    """One checkpoint: Soft-NMS, mirrored images, another size."""
    yield from common.prediction()
