r"""Faster or Cascade R-CNN with FPN on Swin: T, S or B, on COCO.

    python scripts/train.py --config=experiments/coco_swin_t_fpn.py \
        --workdir=runs/swin --config.data.root=COCO \
        --config.model.backbone.pretrained=hf:timm/swin_tiny_patch4_window7_224.ms_in1k
    python scripts/evaluate.py --checkpoint=runs/swin

Arguments: `:schedule=3x` (36 epochs in place of 12), `:cascade` for three box heads
that refine one box a RoI, `:size=s` and `:size=b`, `:runlocal` is small (a narrow
network, for two CPU cores). Weights are classifiers of torchvision or timm;
`timm/swin_tiny_patch4_window7_224.ms_in1k` is under the MIT licence.

Published, box AP on COCO val2017 in %, Mask R-CNN trained with masks from ImageNet-1k's
weights (MMDetection): Swin-T 42.7 (12 epochs), 46.0 (36 epochs), Swin-S 48.2 (36
epochs). No row of a Faster R-CNN is known. This file has its AdamW, stochastic depth
(0.2) and schedules; it differs in: no masks, no weight decay of biases, and with 36
epochs no random crop before the resizing. Ours: not run.

`:cascade` has the heads of `coco_convnext_t_fpn.py:cascade`; no row of this recipe is
known. By another one Cascade Mask R-CNN with Swin-B has 53.9 (Detectron2's
projects/ViTDet: ImageNet-22k's weights, 50 epochs of 1024x1024 with large scale
jitter). Ours: not run.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, size="t", schedule="1x", cascade=False)
    local = args["runlocal"]
    epochs = {"1x": 12, "3x": 36}
    if args["schedule"] not in epochs:
        raise ValueError(
            f"config argument schedule={args['schedule']}: expected 1x or 3x"
        )
    steps = 100 if local else epochs[args["schedule"]] * 7329
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule=args["schedule"]))
    c.update(frozen=(), total_steps=steps, eval_every=steps if local else 3 * 7329)
    c.optimizer = common.adamw()
    if args["schedule"] == "1x":
        c.optimizer.update(boundaries=(8 / 12, 11 / 12))
        c.data.augment = {}  # one short side, 800
    else:
        c.data.augment = common.short_sides(480, runlocal=local)
    c.model = dict(  # models.build_detector
        backbone=common.swin(args["size"], runlocal=local),
        dtype="float32",
        fpn=dict(channels=256),
        roi_align=dict(sampling_ratio=0),
    )
    if args["cascade"]:
        common.giou_cascade(c, runlocal=local)
    return c
