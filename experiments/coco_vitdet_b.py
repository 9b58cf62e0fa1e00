r"""Faster or Cascade R-CNN on a plain ViT: ViTDet-B on COCO, or a frozen DINOv2.

    python scripts/train.py --config=experiments/coco_vitdet_b.py \
        --workdir=runs/vitdet --config.data.root=COCO \
        --config.model.backbone.pretrained=hf:timm/vit_base_patch16_224.mae
    python scripts/evaluate.py --checkpoint=runs/vitdet

Arguments: `:cascade` for three box heads that refine one box a RoI, `:size=s` (ViT-S),
`:dinov2` (ViT-B/14, or `:dinov2,size=s`, frozen, one level of stride 14 as in C4, 12
epochs; no published row is known), `:runlocal` is small (a narrow network, for two CPU
cores). MAE's weights are under CC BY-NC 4.0, not for commercial use;
`hf:timm/samvit_base_patch16.sa1b` (with `--config.model.backbone.positions=64`),
`hf:timm/vit_base_patch16_224.dino` and `hf:timm/vit_base_patch14_dinov2.lvd142m` are
under Apache 2.0.

Published, box AP on COCO val2017 in %, ViTDet-B trained with masks for 100 epochs from
MAE's weights of ImageNet-1k: 51.6 for Mask R-CNN, 54.0 for Cascade Mask R-CNN
(Detectron2's projects/ViTDet; 64 images of 1024x1024 on 64 A100). No row without masks
is known. This file has its
images, large scale jitter (0.1 to 2), windows of 14 cells and four global blocks,
simple feature pyramid, two convolutions in the RPN, four in the box head, norms, AdamW,
rate and weight decay (1e-4 and 0.1, of Detectron2's configs/common/optim.py), rates by
layer (0.7), stochastic depth (0.1) and schedule; it differs in: no masks, an epsilon of
1e-5 in the norms of the box head (Detectron2's LayerNorm has 1e-6), no weight decay of
biases and relative positions, absolute positions resized with the antialiased cubic of
timm, maxima of odd maps rounded up, remat, bfloat16 in place of float16, images without
objects are kept. Ours: not run.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, size="b", dinov2=False, cascade=False)
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.detectron2(runlocal=local, schedule="1x"))
    side = 256 if local else 1024
    c.data.update(short_side=side, max_side=side, canvas=(side, side))
    c.data.augment = dict(jitter=(0.1, 2.0))
    if args["dinov2"]:
        c.model = common.dinov2(args["size"], runlocal=local)
        c.frozen = ("backbone",)
        c.optimizer = common.adamw()
        c.optimizer.update(boundaries=(8 / 12, 11 / 12))
        c.total_steps = 100 if local else 12 * 7329
        c.eval_every = 100 if local else 3 * 7329
        if args["cascade"]:
            common.cascade(c, detectron2=True)
        return c
    c.update(frozen=(), total_steps=100 if local else 184_375)
    c.update(eval_every=100 if local else 20_000, batch_size=2 if local else 64)
    backbone = common.vit(args["size"], runlocal=local)
    c.optimizer = common.adamw(0.7, common.vit_layers(backbone["depth"]))
    c.optimizer.update(reference_batch=64, weight_decay=0.1, warmup_steps=250)
    c.optimizer.update(boundaries=(163_889 / 184_375, 177_546 / 184_375))
    width = 64 if local else 256
    c.model = dict(  # models.build_detector
        backbone=backbone,
        dtype="float32" if local else "bfloat16",
        fpn=dict(name="simple_pyramid", channels=width, norm="layer"),
        rpn=dict(channels=width, depth=2),
        roi_align=dict(sampling_ratio=0),
        box_head=dict(
            convs=(width,) * 4,
            widths=(4 * width,),
            norm="layer",
            class_agnostic=args["cascade"],
        ),
    )
    if args["cascade"]:
        common.cascade(c, detectron2=True)
    return c
