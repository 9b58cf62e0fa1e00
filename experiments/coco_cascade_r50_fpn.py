r"""Cascade R-CNN with ResNet-50 or ResNet-101 and FPN on COCO.

    python scripts/train.py --config=experiments/coco_cascade_r50_fpn.py \
        --workdir=runs/cascade --config.data.root=COCO \
        --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --weights=model_final_480dd8.pkl \
        --config=experiments/coco_cascade_r50_fpn.py:schedule=3x \
        --config.data.root=COCO

Three box heads at IoU 0.5, 0.6 and 0.7 refine one box a RoI. Arguments: `:schedule=3x`
(270k steps in place of 90k), `:depth=101`, `:mmdetection` for MMDetection's recipe
(pixels and stride of torchvision's ResNet, one short side of 800, smooth L1 with beta
1/9 and 1, stage weights 1, 1/2, 1/4), `:runlocal` is small, for two CPU cores.

The Detectron2 recipe is that of its Cascade Mask R-CNN without masks; of its weights
the mask branch is ignored. Differences to `coco_r50_fpn.py`: 2000 proposals in
training, L1 of class-agnostic boxes, a third of the box heads' gradient reaches the
features.

Published, box AP on COCO val2017 in %:

| | 1x | 3x | its weights |
| --- | --- | --- | --- |
| Detectron2, Cascade Mask R50-FPN (trained with masks) | 42.1 | 44.3 | e9d89b, 480dd8 |
| Detectron2, Mask R50-FPN, for comparison | 38.6 | 41.0 | |
| MMDetection, Cascade R50-FPN | 40.3 | | |
| MMDetection, Faster R50-FPN, for comparison | 37.4 | | |

Sources: Detectron2's MODEL_ZOO.md, MMDetection's configs/cascade_rcnn. ImageNet weights
of ResNet-50 in all of them. Ours: not run here, neither trained nor evaluated (no COCO,
no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg, runlocal=False, schedule="1x", depth=50, mmdetection=False
    )
    local, other = args["runlocal"], args["mmdetection"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule=args["schedule"]))
    resnet = common.msra_resnet(args["depth"])
    if other:
        resnet = dict(backbone=common.frozen_resnet(args["depth"]), dtype="float32")
    c.model = dict(resnet, fpn=dict(channels=256), roi_align=dict(sampling_ratio=0))
    c.proposals.train.post_nms = 2000
    if other:
        c.rpn_loss.beta, c.detector_loss.beta = 1 / 9, 1.0
        del c.data.augment, c.data.reduced
        c.data.reduced = False  # OpenCV's bilinear
        if args["schedule"] == "1x" and not local:  # epochs 8 and 11 of 12
            c.total_steps, c.optimizer.boundaries = 87_948, (58_632.0, 80_619.0)
            c.optimizer.warmup_steps = 500
    common.cascade(c, detectron2=not other)
    return c
