r"""torchvision's fasterrcnn_resnet50_fpn, to load its weights or train as it did.

    python scripts/convert_weights.py --config=experiments/torchvision_r50_fpn.py \
        --weights=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --output=runs/r50_fpn
    python scripts/evaluate.py --checkpoint=runs/r50_fpn --set=data.root=COCO
    python scripts/train.py --config=experiments/torchvision_r50_fpn.py \
        --workdir=runs/mine --config.data.root=COCO

Published for these weights: AP 37.0 on COCO val2017 (torchvision, 26 epochs of batch
16). Not evaluated here. `norm_eps` 0 is that of the published weights, which were made
before torchvision had an epsilon there; your own have 1e-5 (`:eps=1e-5`).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, eps=0.0)
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.torchvision_coco(
            runlocal=args["runlocal"], short_side=800, max_side=1333
        )
    )
    c.frozen = ("backbone/conv1", "backbone/bn1", "backbone/layer1")
    c.model = dict(  # models.build_detector
        backbone=dict(name="resnet", depth=50, norm_eps=args["eps"], pretrained=""),
        fpn=dict(channels=256),
        anchors=dict(rounding="torchvision"),
        roi_align=dict(aligned=False),
    )
    return c
