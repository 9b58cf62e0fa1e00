r"""Faster or Cascade R-CNN with FPN on ConvNeXt: T, S or B, on COCO.

    python scripts/train.py --config=experiments/coco_convnext_t_fpn.py \
        --workdir=runs/convnext --config.data.root=COCO \
        --config.model.backbone.pretrained=hf:timm/convnext_tiny.fb_in22k_ft_in1k
    python scripts/evaluate.py --checkpoint=runs/convnext

Arguments: `:cascade` for three box heads that refine one box a RoI, `:size=s` and
`:size=b`, `:runlocal` is small (a narrow network, for two CPU cores). Weights are
classifiers of torchvision or timm; `timm/convnext_tiny.fb_in22k_ft_in1k` (pre-trained
on ImageNet-22k) is under Apache 2.0.

Published, box AP on COCO val2017 in %, trained with masks for 36 epochs from
ImageNet-1k's weights (MMDetection's configs/convnext):

| | T | S |
| --- | --- | --- |
| Mask R-CNN (ResNet-50 with its 3x schedule: 41.0) | 46.2 | |
| Cascade Mask R-CNN | 50.3 | 51.8 |

No row without masks is known. This file has MMDetection's AdamW, rates by layer (0.95;
`:cascade` 0.7 and twice the rate), stochastic depth (T 0.4, S 0.6) and schedule, and
with `:cascade` its heads of four convolutions, GIoU with the weight 10 and stage
weights 1, 1/2, 1/4. It differs in: no masks, no random crop before the resizing,
float32 in place of float16; `:cascade` also in norms of each cell in the box heads, in
place of synchronised ones, and one box a RoI in place of one for each class. Ours: not
run.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, size="t", cascade=False)
    local = args["runlocal"]
    backbone = common.convnext(args["size"], runlocal=local)
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule="3x"))
    c.update(
        frozen=(),
        total_steps=100 if local else 36 * 7329,
        eval_every=100 if local else 3 * 7329,
    )
    layers = common.convnext_layers(backbone["depths"])
    c.optimizer = common.adamw(0.7 if args["cascade"] else 0.95, layers)
    c.data.augment = common.short_sides(480, runlocal=local)
    c.model = dict(  # models.build_detector
        backbone=backbone,
        dtype="float32",
        fpn=dict(channels=256),
        roi_align=dict(sampling_ratio=0),
    )
    if args["cascade"]:
        common.giou_cascade(c, runlocal=local)
        c.optimizer.update(learning_rate=2e-4)
    return c
