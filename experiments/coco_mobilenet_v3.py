r"""torchvision's fasterrcnn_mobilenet_v3_large_fpn on COCO, and `:low` at 320 pixels.

    python scripts/evaluate.py --config=experiments/coco_mobilenet_v3.py \
        --weights=fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth --config.data.root=COCO
    python scripts/evaluate.py --config=experiments/coco_mobilenet_v3.py:low \
        --weights=fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth \
        --config.data.root=COCO
    python scripts/train.py --config=experiments/coco_mobilenet_v3.py \
        --workdir=runs/mobilenet --config.data.root=COCO \
        --config.model.backbone.pretrained=mobilenet_v3_large-8738ca79.pth

Arguments: `:low` is 320 pixels and 150 proposals, `:runlocal` is small, for two CPU
cores. Two maps have stride 32, the second under the key 33; RoIs are pooled from the
first alone, as torchvision does.

Published for its weights, box AP on COCO val2017 in %: 32.8, 22.8 with `:low`
(torchvision; 26 epochs of batch 16, 0.02, rates down at 16 and 22). Ours: not run here,
neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, low=False)
    short_side, max_side = (320, 640) if args["low"] else (800, 1333)
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.torchvision(
            runlocal=args["runlocal"], short_side=short_side, max_side=max_side
        )
    )
    c.proposals.eval.score = 0.05
    c.proposals.train.score = 0.05
    if args["low"]:
        c.proposals.eval.update(pre_nms=150, post_nms=150)
    # torchvision trains three of its six stages: all from block7 on.
    blocks = (f"backbone/block{i}" for i in range(1, 7))
    c.frozen = ("backbone/stem", "backbone/stem_bn", *blocks)
    c.model = dict(  # models.build_detector
        backbone=dict(
            name="mobilenet", out_strides=(32, 33), norm="frozen", pretrained=""
        ),
        dtype="float32",
        fpn=dict(channels=256),
        anchors=dict(
            strides=(32, 32, 64),
            levels=(32, 33, 66),
            sizes=((32.0, 64.0, 128.0, 256.0, 512.0),) * 3,
            rounding="torchvision",
        ),
        roi_align=dict(strides=(32,), aligned=False),
    )
    return c
