r"""Detectron2's Faster R-CNN on stage 3 (C4), stage 4 on every RoI, COCO.

    python scripts/train.py --config=experiments/coco_r50_c4.py --workdir=runs/c4 \
        --config.data.root=COCO --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --config=experiments/coco_r50_c4.py:schedule=3x \
        --weights=model_final_f97cb7.pkl --config.data.root=COCO

Arguments: `:schedule=3x`, `:depth=101`, `:runlocal` is small, for two CPU cores.

RoIAlign has Detectron2's adaptive number of samples, ceil(RoI side / 14) an axis up to
16 (`roi_align.max_samples`).

Published, box AP on COCO val2017 in % (Detectron2, MODEL_ZOO.md): 35.7 with 1x (weights
721ade), 38.4 with 3x (f97cb7), 41.1 with `:depth=101,schedule=3x` (298dad). Cost there:
0.551 s a step of 16 images on eight V100 (101 layers: 0.619). Ours: not run here,
neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, schedule="1x", depth=50)
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=args["runlocal"], schedule=args["schedule"]))
    c.update(common.detectron2_c4(depth=args["depth"]))
    return c
