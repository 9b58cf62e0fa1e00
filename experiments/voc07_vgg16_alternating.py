r"""The paper's four-step alternating training (Sec 3.2): VGG-16 on VOC 2007.

    python scripts/train_alternating.py \
        --config=experiments/voc07_vgg16_alternating.py --workdir=runs/alternating \
        --config.data.root=VOCdevkit --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/alternating/step4

One step alone (`step=2` to `4` also need `init_from` or `data.proposals`):

    python scripts/train.py --config=experiments/voc07_vgg16_alternating.py:step=1 \
        --workdir=runs/alternating/step1 --config.data.root=VOCdevkit

Arguments: `:0712` adds VOC 2012 trainval, `:tfds` reads VOC from TFDS,
which needs no `data.root`, `:practice` takes py-faster-rcnn's loss in
place of eq. (1), `:runlocal` is small, for two CPU cores.

FILE has VGG-16 of ImageNet under torchvision's names: Caffe's weights, as the paper, or
with `:torchvision` those of torchvision (`weights/vgg.py`).

Published, VOC 2007 test, mAP of the 11-point metric in % (Table 3): 69.9 on 07, 73.2 on
07+12; not shared (`step2`, evaluated with `data.max_proposals=300`) 68.5. Steps
and rates are py-faster-rcnn's: 80k, 40k, 80k, 40k, one image for the RPN, two for the
detector. Ours: not run: needs VOC and ImageNet weights.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg,
        step=1,
        runlocal=False,
        torchvision=False,
        practice=False,
        tfds=False,
        **{"0712": False},
    )
    local, rpn = args["runlocal"], args["step"] in (1, 3)
    steps = 80_000 if rpn else 40_000
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.run(batch_size=1 if rpn else 2, total_steps=100 if local else steps)
    )
    c.update(common.paper(runlocal=local, practice=args["practice"]))
    c.optimizer.boundaries = (60_000.0,) if rpn else (30_000.0,)
    c.roi_targets.num_samples = 64  # 128 RoIs of two images
    c.frozen = common.VGG_FROZEN
    c.data = common.voc07(runlocal=local, also12=args["0712"], tfds=args["tfds"])
    c.model = dict(
        common.vgg16(torchvision=args["torchvision"], runlocal=local),
        **common.vgg16_rpn(128, 256, 512, runlocal=local),
    )
    if not local:
        c.eval_every, c.checkpoint_every = c.total_steps, 5_000
    common.alternating(c, args["step"])
    return c
