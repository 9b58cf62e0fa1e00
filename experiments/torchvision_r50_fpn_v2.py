r"""torchvision's fasterrcnn_resnet50_fpn_v2: norms in FPN and box head, deeper heads.

    python scripts/convert_weights.py --config=experiments/torchvision_r50_fpn_v2.py \
        --weights=fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --output=runs/r50_fpn_v2
    python scripts/evaluate.py --checkpoint=runs/r50_fpn_v2 --set=data.root=COCO
    python scripts/train.py --config=experiments/torchvision_r50_fpn_v2.py \
        --workdir=runs/mine --config.data.root=COCO

Published for these weights: AP 46.7 on COCO val2017 (torchvision, 400 epochs with
large-scale jitter and batch norm that learns). Not evaluated here. The statistics of
its norms stay as loaded, so this fine-tunes; `:norm=group` trains the heads from
scratch.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, norm="frozen")
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.torchvision_coco(
            runlocal=args["runlocal"], short_side=800, max_side=1333
        )
    )
    c.frozen = ("backbone/conv1", "backbone/bn1", "backbone/layer1")
    c.model = dict(  # models.build_detector
        backbone=dict(name="resnet", depth=50, pretrained=""),
        fpn=dict(channels=256, norm=args["norm"]),
        anchors=dict(rounding="torchvision"),
        rpn=dict(depth=2),
        roi_align=dict(aligned=False),
        box_head=dict(convs=(256, 256, 256, 256), widths=(1024,), norm=args["norm"]),
    )
    return c
