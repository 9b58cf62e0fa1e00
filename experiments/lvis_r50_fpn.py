r"""LVIS v1 (1203 classes) with ResNet-50 FPN and repeat-factor sampling.

    python scripts/train.py --config=experiments/lvis_r50_fpn.py --workdir=runs/lvis \
        --config.data.root=LVIS --config.model.backbone.pretrained=R-50.pkl
    python scripts/evaluate.py --checkpoint=runs/lvis
    python scripts/evaluate.py --annotations=LVIS/annotations/lvis_v1_val.json \
        --detections=runs/lvis/detections_val.json

The folder has COCO's train2017 and val2017 and annotations/lvis_v1_{train,val}.json.
The last command has LVIS' own metrics, LVIS_AP, LVIS_APr, LVIS_APc and LVIS_APf, which
need the official file: the first scores every image for every class.

Images of rare classes come more often (`data.sampling`, factor sqrt(0.001 / f)); an
image has 300 detections, from a score of 0.0001. Both are Detectron2's for LVIS; the
180k steps of 16 images are its 1x schedule there.

Arguments: `:runlocal` is small, for two CPU cores. Published: box AP of a Faster R-CNN
without masks on LVIS v1 was not found. Ours: not run here, neither trained nor
evaluated (no LVIS, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False)
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule="1x"))
    c.model = dict(
        common.msra_resnet(50),
        fpn=dict(channels=256),
        roi_align=dict(sampling_ratio=0),
    )
    c.data.update(
        train_split="train",
        eval_split="val",
        annotations="annotations/lvis_v1_{split}.json",
        images="",  # those of COCO, by the addresses in the file
        max_boxes=400,
    )
    c.data.on_overflow = "drop_smallest"
    c.data.sampling = dict(name="repeat_factors", threshold=0.001)
    c.postprocess.update(score=1e-4, max_detections=300)
    if not local:
        c.total_steps, c.optimizer.boundaries = 180_000, (120_000.0, 160_000.0)
    return c
