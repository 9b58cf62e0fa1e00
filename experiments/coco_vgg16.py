r"""The paper's COCO row: VGG-16, twelve anchors a place, trained end to end.

    python scripts/train.py --config=experiments/coco_vgg16.py --workdir=runs/coco_vgg \
        --config.data.root=COCO --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/coco_vgg

Arguments: `:practice` takes py-faster-rcnn's loss in place of eq. (1), `:runlocal` is
small, for two CPU cores.

FILE has VGG-16 of ImageNet under torchvision's names: Caffe's weights, as the paper, or
with `:torchvision` those of torchvision (`weights/vgg.py`).

Published, trained on train2014 (80k images), AP50 / AP in % on val2014 (Table 11):
41.5 / 21.2, Fast R-CNN 38.6 / 18.9; on test-dev 42.1 / 21.5. tf-faster-rcnn: AP 30.2
with its own recipe and more training images. Ours: not run: needs COCO and ImageNet
weights.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, torchvision=False, practice=False)
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(
        common.run(batch_size=2 if local else 8, total_steps=100 if local else 320_000)
    )
    c.update(common.paper(runlocal=local, practice=args["practice"]))
    c.optimizer.update(learning_rate=3e-3, boundaries=(240_000.0,))
    c.frozen = common.VGG_FROZEN
    c.data = dict(  # data.pipeline.build, data.sources.coco.load
        name="coco",
        root="",
        train_split="train2014",
        eval_split="val2014",
        max_boxes=100,
        flip=True,
        **common.paper_images(runlocal=local),
    )
    c.model = dict(
        common.vgg16(torchvision=args["torchvision"], runlocal=local),
        **common.vgg16_rpn(64, 128, 256, 512, runlocal=local),
    )
    if not local:
        c.eval_every, c.checkpoint_every = 40_000, 10_000
    return c
