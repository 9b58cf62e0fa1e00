r"""Detectron2's Faster R-CNN with FPN: ResNet-50, ResNet-101 or ResNeXt-101 on COCO.

    python scripts/train.py --config=experiments/coco_r50_fpn.py --workdir=runs/r50 \
        --config.data.root=COCO --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --config=experiments/coco_r50_fpn.py:schedule=3x \
        --weights=model_final_280758.pkl --config.data.root=COCO

Arguments: `:schedule=3x` (270k steps in place of 90k), `:depth=101`, `:x101` for
ResNeXt-101 32x8d (stride in the 3x3, its own pixel deviation), `:runlocal` is small,
for two CPU cores. R-50.pkl, R-101.pkl and X-101-32x8d.pkl are the zoo's ImageNet
weights ("MSRA", "FAIR"); they are read without unpickling anything but arrays.

RoIAlign has Detectron2's adaptive number of samples, ceil(RoI side / 7) an axis up to
16 (`roi_align.max_samples`); `sampling_ratio=2` is a fixed 2x2.

Published, box AP on COCO val2017 in % (Detectron2, MODEL_ZOO.md):

| | 1x | 3x | its weights |
| --- | --- | --- | --- |
| default | 37.9 | 40.2 | b275ba, 280758 |
| `:depth=101` | | 42.0 | f6e8b1 |
| `:x101` | | 43.0 | 68b088 |

Cost there: 0.210, 0.286 and 0.638 s a step of 16 images on eight V100. Ours: not run
here, neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, schedule="1x", depth=50, x101=False)
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=args["runlocal"], schedule=args["schedule"]))
    resnet = common.resnext101() if args["x101"] else common.msra_resnet(args["depth"])
    c.model = dict(resnet, fpn=dict(channels=256), roi_align=dict(sampling_ratio=0))
    return c
