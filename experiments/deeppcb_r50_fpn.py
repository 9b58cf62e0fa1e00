r"""Printed circuit boards (DeepPCB, 1,500 images of 640 pixels, six kinds of defect).

    python scripts/train.py --config=experiments/deeppcb_r50_fpn.py --workdir=runs/pcb \
        --config.data.root=DEEPPCB_FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/evaluate.py --checkpoint=runs/pcb --pictures=6

The folder is a COCO folder: annotations/instances_trainval.json and instances_test.json
(the official split, 1,000 and 500 images), images in trainval/ and test/. The weights
are those of Keras' ResNet50 by layer name, whose conventions are set below. The recipe
is torchvision's, 12 epochs of batch 8 at half its rate; stem and layer1 are frozen.

Arguments: `:weights=timm` has the conventions of torchvision's and timm's weights,
`:runlocal` is small, for two CPU cores (320 pixels, 500 steps).

Published for Faster R-CNN on this split, AP50: 0.926 to 0.969. Ours at full size: not
run here, no GPU at hand; the aim is AP50 of at least 0.95. `:runlocal` with 250 steps,
beside torchvision and `finetune.py`: README.md, "Accuracy in the same minutes".
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, weights="keras")
    local = args["runlocal"]
    steps, side = (500, 320) if local else (1500, 640)
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2 if local else 8, total_steps=steps))
    c.update(common.faster_rcnn())
    c.eval_every, c.checkpoint_every = steps // 2, steps // 10
    c.frozen = common.RESNET_FROZEN
    c.data = common.data(
        "coco",
        train_split="trainval",
        eval_split="test",
        short_side=side,
        max_side=side,
        canvas=(side, side),
        max_boxes=32,
        cache=True,
    )
    # Root of the area of the defects: 25 to 71 pixels, half of them 31 to 40.
    sizes = (16.0, 32.0, 64.0, 128.0, 256.0)
    c.model = dict(  # models.build_detector
        common.imagenet_resnet50(args["weights"]),
        fpn=dict(channels=256),
        anchors=dict(sizes=tuple(s / 2 for s in sizes) if local else sizes),
    )
    c.roi_targets.num_samples = 128 if local else 256
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(pre_nms=1000, post_nms=300)
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.005 if local else 0.01,
        reference_batch=2 if local else 8,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=50 if local else 200,
    )
    return c
