r"""torchvision's fasterrcnn_resnet50_fpn_v2 on COCO: norms in FPN and box head.

    python scripts/evaluate.py --config=experiments/coco_r50_fpn_v2.py \
        --weights=fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --config.data.root=COCO
    python scripts/train.py --config=experiments/coco_r50_fpn_v2.py:norm=group \
        --workdir=runs/v2 --config.data.root=COCO \
        --config.model.backbone.pretrained=resnet50-11ad3fa6.pth

Arguments: `:norm=group` trains FPN and box head without statistics of another run (the
default keeps those that were loaded, and fine-tunes), `:norm=sync` learns them over all
devices (with `--config.model.backbone.norm=sync` those of the backbone too),
`:runlocal` is small, for two CPU cores.

Published for these weights, box AP on COCO val2017 in %: 46.7, AP50 67.3, AP75 51.1
(torchvision). The recipe is its own: 400 epochs, batch 64, rate 0.1, down at 352 and
384, decay 4e-5, large-scale jitter, nothing frozen, and synchronised batch norms that
learn; here all keep their statistics unless the arguments above say otherwise. Ours:
not run here, neither trained nor evaluated (no COCO, no weights, no GPU at hand).
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, norm="frozen")
    c: Any = ml_collections.ConfigDict()
    local = args["runlocal"]
    c.update(common.torchvision(runlocal=local))
    c.data.augment = dict(jitter=(0.1, 2.0))
    c.optimizer.update(
        learning_rate=0.1,
        reference_batch=64,
        weight_decay=4e-5,
        boundaries=(352 / 400, 384 / 400),
    )
    if not local:
        c.batch_size, c.total_steps = 64, 400 * 1832
        c.eval_every, c.checkpoint_every = 10 * 1832, 1832
    c.model = dict(  # models.build_detector
        backbone=common.frozen_resnet(50),
        dtype="float32",
        fpn=dict(channels=256, norm=args["norm"]),
        anchors=dict(rounding="torchvision"),
        rpn=dict(depth=2),
        roi_align=dict(aligned=False),
        box_head=dict(convs=(256, 256, 256, 256), widths=(1024,), norm=args["norm"]),
    )
    return c
