r"""Blood cells (BCCD, 364 photographs) with ResNet-50 FPN from ImageNet weights.

    python scripts/train.py --config=experiments/bccd_r50_fpn.py:runlocal \
        --workdir=runs/bccd --config.data.root=BCCD_FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/evaluate.py --checkpoint=runs/bccd --pictures=6

The folder is a VOC folder (Annotations, JPEGImages, ImageSets/Main). The weights are
those of Keras' ResNet50 by layer name; their conventions (stride in the 1x1, epsilon
1e-3, mean only) are set below. docs/data.md says where to get both.

Arguments: `:weights=timm` has the conventions of torchvision's and timm's weights
(`--config.model.backbone.pretrained=hf:timm/resnet50.a1_in1k`); it has not been run.
`:runlocal` is for two CPU cores: 300 pixels, stem to layer2 frozen. Without it, full
size for a GPU.

Measured (`:runlocal`, two Xeon cores, 2026-11-24, one run): val AP 0.595, AP50 0.904
after 1000 steps, 56 min on a busy machine (43 min of CPU time); 0.579, 0.902 after 700
steps in 23 min. Full size: not run here, no GPU at hand.

`sweep_seeds` are three seeds with smooth L1 and three with GIoU, `bccd_cascade.py` has
three of a cascade: `scripts/sweep.py --sweep=seeds`; then `scripts/bench/prediction.py`
for each checkpoint. Run by the recipe of `finetune.py` on three folds of the training
photographs (docs/results.md): one box head 0.565, GIoU 0.562, a cascade 0.600; Soft-NMS
adds 1.1, 1.2 and 0.8 AP, mirrored images 0.1, 0.4 and 0.1.

Peer, measured on the same two cores from the same weights: torchvision, 300 pixels,
batch 2, 560 steps, stem to layer2 frozen, SGD 0.005: val AP 0.592, AP50 0.907, 39 min.
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
    return c


def sweep_seeds() -> Iterator[dict[str, Any]]:
    """Three runs that differ by chance alone, and three more with GIoU."""
    for loss in ("", "giou"):
        for seed in (0, 1, 2):
            weight = 10.0 if loss else 1.0  # of the box loss, MMDetection's for GIoU
            yield {
                "seed": seed,
                "roi_box_loss.name": loss,
                "loss_weights.roi_box": weight,
            }


def sweep_prediction() -> Iterator[dict[str, Any]]:
    """One checkpoint: Soft-NMS, mirrored images, another size."""
    yield from common.prediction()
