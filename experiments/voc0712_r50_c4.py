r"""Detectron2's Faster R-CNN R50-C4 on VOC 2007 and 2012 trainval, tested on 2007.

    python scripts/train.py --config=experiments/voc0712_r50_c4.py --workdir=runs/voc \
        --config.data.root=VOCdevkit --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --checkpoint=runs/voc

Arguments: `:depth=101`, `:runlocal` is small, for two CPU cores. R-50.pkl is the zoo's
ImageNet weight file ("MSRA").

Published, VOC 2007 test: AP 51.9, AP50 80.3 of the area metric, in % (Detectron2,
MODEL_ZOO.md: 18k steps of 16 images, 17.4 epochs). MMDetection, the same network and
steps: AP50 80.9. Ours: not run here (no VOC, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, depth=50)
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule="1x"))
    c.update(common.detectron2_c4(depth=args["depth"]))
    images = {k: c.data[k] for k in ("short_side", "max_side", "canvas")}
    c.data = common.data(
        "voc",  # root is the folder VOCdevkit
        classes="voc",
        train_split="2007_trainval+2012_trainval",
        eval_split="2007_test",
        max_boxes=64,
        reduced="smooth",
        augment=common.short_sides(480, runlocal=local),
        **images,
    )
    c.optimizer.warmup_steps = 100
    if not local:
        c.total_steps, c.optimizer.boundaries = 18_000, (12_000.0, 16_000.0)
        c.eval_every, c.checkpoint_every = 6_000, 2_000
    return c
