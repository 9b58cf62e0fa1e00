r"""Detectron2's Faster R-CNN on a dilated stage 4 (DC5), COCO.

    python scripts/train.py --config=experiments/coco_r50_dc5.py --workdir=runs/dc5 \
        --config.data.root=COCO --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --config=experiments/coco_r50_dc5.py:schedule=3x \
        --weights=model_final_68d202.pkl --config.data.root=COCO

Arguments: `:schedule=3x`, `:depth=101`, `:runlocal` is small, for two CPU cores.

RoIAlign has Detectron2's adaptive number of samples, ceil(RoI side / 7) an axis up to
16 (`roi_align.max_samples`).

Published, box AP on COCO val2017 in % (Detectron2, MODEL_ZOO.md): 37.3 with 1x (weights
51d356), 39.0 with 3x (68d202), 40.6 with `:depth=101,schedule=3x` (3e0943). Cost there:
0.380 s a step of 16 images on eight V100 (101 layers: 0.452). Ours: not run here,
neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, schedule="1x", depth=50)
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=args["runlocal"], schedule=args["schedule"]))
    c.proposals.train.update(pre_nms=12000, post_nms=2000)
    c.proposals.eval.pre_nms = 6000
    c.model = dict(
        common.msra_resnet(args["depth"], out_strides=(16,), dilated_c5=True),
        anchors=common.one_level_anchors(),
        rpn=dict(channels=2048),
        roi_align=dict(strides=(16,), sampling_ratio=0),
    )
    return c
