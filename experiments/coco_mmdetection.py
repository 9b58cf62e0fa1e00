r"""MMDetection's Faster R-CNN on COCO: FPN, C4 or DC5; pytorch or caffe style.

    python scripts/evaluate.py --config=experiments/coco_mmdetection.py \
        --weights=faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth \
        --config.data.root=COCO
    python scripts/train.py --config=experiments/coco_mmdetection.py --workdir=runs/mm \
        --config.data.root=COCO --config.model.backbone.pretrained=resnet50-0676ba61.pth

Arguments: `:depth=101`; `:network=x101_32x4d`, `x101_64x4d` or `x101_32x8d` (ResNeXt);
`:caffe` for weights of Caffe (stride in the 1x1, pixel deviation 1; their BGR is undone
when the file is read); `:kind=c4` or `dc5` (both of caffe style there); `:schedule=3x`
with short sides 640 to 800; `:runlocal` is small, for two CPU cores.

What differs from Detectron2: anchors of several sizes stand for each ratio, for each
size; images are resized by OpenCV without smoothing.

Published, box AP on COCO val2017 in % (MMDetection, configs/faster_rcnn/metafile.yml):

| | 1x | 3x |
| --- | --- | --- |
| default | 37.4 | 40.3 |
| `:depth=101` | 39.4 | 41.8 |
| `:network=x101_32x4d` | 41.2 | 42.5 |
| `:network=x101_64x4d` | 42.1 | 43.1 |
| `:network=x101_32x8d` | | 42.4 |
| `:caffe` | 37.8 | 39.9 |
| `:caffe,depth=101` | 39.8 | 42.0 |
| `:caffe,kind=c4` | 35.6 | |
| `:caffe,kind=dc5` | 37.2 | 38.7 |

Ours: not run here, neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common

NETWORKS = {"x101_32x4d": (32, 4), "x101_64x4d": (64, 4), "x101_32x8d": (32, 8)}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg,
        runlocal=False,
        schedule="1x",
        depth=50,
        network="",
        caffe=False,
        kind="fpn",
    )
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=args["runlocal"], schedule=args["schedule"]))
    del c.data.reduced
    c.data.reduced = False  # OpenCV's bilinear
    if args["schedule"] == "1x":
        del c.data.augment
    c.model = model(args["depth"], args["network"], args["caffe"], args["kind"])
    if args["kind"] != "fpn":
        c.proposals.train.update(pre_nms=12000, post_nms=2000)
        c.proposals.eval.update(pre_nms=6000, post_nms=1000)
    return c


def model(depth: int, network: str, caffe: bool, kind: str) -> dict[str, Any]:
    """The group `model`."""
    resnet = dict(backbone=common.frozen_resnet(depth), dtype="float32")
    if network:
        if network not in NETWORKS or caffe:
            raise ValueError(
                f"config argument network={network}: expected one of {list(NETWORKS)}, "
                "without caffe"
            )
        groups, width = NETWORKS[network]
        resnet["backbone"] = common.frozen_resnet(101, groups=groups, group_width=width)
    if kind == "fpn":
        if caffe:
            resnet = common.msra_resnet(depth)
        return dict(resnet, fpn=dict(channels=256), roi_align=dict(sampling_ratio=0))
    if kind not in ("c4", "dc5") or not caffe:
        raise ValueError(
            f"config argument kind={kind}: expected fpn, or c4 or dc5 with caffe"
        )
    anchors = dict(common.one_level_anchors(), rounding="none")
    if kind == "dc5":
        return dict(
            common.msra_resnet(depth, out_strides=(16,), dilated_c5=True),
            pad_to=32,  # whatever the network
            anchors=anchors,
            rpn=dict(channels=2048),
            roi_align=dict(strides=(16,), sampling_ratio=0),
        )
    c4 = common.detectron2_c4(depth=depth)["model"]
    return dict(c4, pad_to=32, anchors=anchors)
