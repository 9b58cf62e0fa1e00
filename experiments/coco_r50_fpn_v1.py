r"""torchvision's fasterrcnn_resnet50_fpn (v1) on COCO: its weights, or its recipe.

    python scripts/evaluate.py --config=experiments/coco_r50_fpn_v1.py \
        --weights=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --config.data.root=COCO
    python scripts/train.py --config=experiments/coco_r50_fpn_v1.py:eps=1e-5 \
        --workdir=runs/v1 --config.data.root=COCO \
        --config.model.backbone.pretrained=resnet50-0676ba61.pth

Arguments: `:eps=1e-5` for weights of your own (the published ones were made when
torchvision had no epsilon there), `:runlocal` is small, for two CPU cores.

Published for these weights, box AP on COCO val2017 in %: 37.0 (torchvision; 26 epochs
of batch 16, 0.02, rates down at 16 and 22). Ours: not run here, neither trained nor
evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, eps=0.0)
    c: Any = ml_collections.ConfigDict()
    c.update(common.torchvision(runlocal=args["runlocal"]))
    c.frozen = common.RESNET_FROZEN
    c.model = dict(  # models.build_detector
        backbone=common.frozen_resnet(50, norm_eps=args["eps"]),
        dtype="float32",
        fpn=dict(channels=256),
        anchors=dict(rounding="torchvision"),
        roi_align=dict(aligned=False),
    )
    return c
