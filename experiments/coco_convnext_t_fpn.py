r"""Faster R-CNN with FPN on ConvNeXt: T, S or B, on COCO.

    python scripts/train.py --config=experiments/coco_convnext_t_fpn.py \
        --workdir=runs/convnext --config.data.root=COCO \
        --config.model.backbone.pretrained=hf:timm/convnext_tiny.fb_in22k_ft_in1k
    python scripts/evaluate.py --checkpoint=runs/convnext

Arguments: `:size=s` and `:size=b`, `:runlocal` is small (a narrow network, for two CPU
cores). Weights are classifiers of torchvision or timm;
`timm/convnext_tiny.fb_in22k_ft_in1k` (pre-trained on ImageNet-22k) is under Apache 2.0.

Published, box AP on COCO val2017 in %: 46.2 for Mask R-CNN with ConvNeXt-T, trained
with masks for 36 epochs from ImageNet-1k's weights (MMDetection; ResNet-50 with its 3x
schedule: 41.0). No row of a Faster R-CNN is known. This file has its AdamW, rates by
layer (0.95), stochastic depth (0.4) and schedule; it differs in: no masks, no random
crop before the resizing, float32 in place of float16. Ours: not run.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, size="t")
    local = args["runlocal"]
    backbone = common.convnext(args["size"], runlocal=local)
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule="3x"))
    c.update(
        frozen=(),
        total_steps=100 if local else 36 * 7329,
        eval_every=100 if local else 3 * 7329,
    )
    c.optimizer = common.adamw(0.95, common.convnext_layers(backbone["depths"]))
    c.data.augment = common.short_sides(480, runlocal=local)
    c.model = dict(  # models.build_detector
        backbone=backbone,
        dtype="float32",
        fpn=dict(channels=256),
        roi_align=dict(sampling_ratio=0),
    )
    return c
