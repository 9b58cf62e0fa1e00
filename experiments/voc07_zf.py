r"""The paper's small model: ZF on VOC 2007, trained end to end (approximate joint).

    python scripts/train.py --config=experiments/voc07_zf.py --workdir=runs/voc07_zf \
        --config.data.root=VOCdevkit --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/voc07_zf   # the paper's mAP is VOC07

Arguments: `:0712` adds VOC 2012 trainval, `:practice` takes py-faster-rcnn's loss in
place of eq. (1), `:runlocal` is small, for two CPU cores.

Published, VOC 2007 test, mAP of the 11-point metric in % (Table 2, four-step training):
59.9, five repeats 59.5 to 60.4; with selective search 58.7. Cost there: 59 ms an image
on a K40 (Table 5). Ours: not run: needs VOC, and ImageNet weights of ZF, for which
there is no reader yet.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, practice=False, **{"0712": False})
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    # Two images a step are py-faster-rcnn's iter_size of 2.
    c.update(common.run(batch_size=2, total_steps=100 if local else 70_000))
    c.update(common.paper(runlocal=local, practice=args["practice"]))
    c.data = common.voc07(runlocal=local, also12=args["0712"])
    c.model = dict(  # models.build_detector
        backbone=dict(name="zf", pretrained=""),
        anchors=common.paper_anchors(128, 256, 512, runlocal=local),
        rpn=dict(channels=256, objectness="softmax"),
        roi_pool=dict(stride=16, output_size=6),  # 6 is what ZF's fc6 was trained on
        box_head=dict(name="zf", widths=(256, 256) if local else (4096, 4096)),
        pixel_mean=(122.7717, 115.9465, 102.9801),
        pixel_std=(1.0, 1.0, 1.0),
    )
    if not local:
        c.eval_every, c.checkpoint_every = 10_000, 5_000
    if args["0712"] and not local:
        c.total_steps, c.optimizer.boundaries = 110_000, (80_000.0,)
    return c
