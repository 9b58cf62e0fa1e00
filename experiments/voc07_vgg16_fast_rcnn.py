r"""What the paper compares with: Fast R-CNN, VGG-16, on selective search's proposals.

    python scripts/make_proposals.py --config=experiments/voc07_vgg16_fast_rcnn.py \
        --config.data.root=VOCdevkit --splits=2007_trainval,2007_test \
        --output='proposals/{split}.npz'
    python scripts/train.py --config=experiments/voc07_vgg16_fast_rcnn.py \
        --workdir=runs/fast --config.data.root=VOCdevkit \
        --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/fast   # the paper's mAP is VOC07

Any other file of proposals does as well: `--config.data.proposals=FILE`. Arguments:
`:0712` adds VOC 2012 trainval, `:tfds` reads VOC from TFDS, `:runlocal` is small, for
two CPU cores.

FILE has VGG-16 of ImageNet under torchvision's names: Caffe's weights, as the paper, or
with `:torchvision` those of torchvision (`weights/vgg.py`).

Published, VOC 2007 test, mAP of the 11-point metric in % (Table 3): 66.9 on 07 (68.1 in
the authors' code), 70.0 on 07+12. Cost there: 1,830 ms an image on a K40, of which
1,510 are selective search's (Table 5). Ours: not run: needs VOC and ImageNet weights.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg, runlocal=False, torchvision=False, tfds=False, **{"0712": False}
    )
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=100 if local else 40_000))
    c.update(common.paper(runlocal=local))  # of the RPN's groups nothing is read
    c.optimizer.boundaries = (30_000.0,)
    c.frozen = common.VGG_FROZEN
    c.data = dict(
        common.voc07(runlocal=local, also12=args["0712"], tfds=args["tfds"]),
        proposals="proposals/{split}.npz",
        max_proposals=200 if local else 2000,
    )
    c.roi_targets.update(num_samples=64, bg_lo=0.1)  # 128 RoIs of two images
    c.algorithm = "fast_rcnn"
    c.model = dict(
        common.vgg16(torchvision=args["torchvision"], runlocal=local),
        external_proposals=True,
    )
    if not local:
        c.eval_every, c.checkpoint_every = 10_000, 5_000
    if args["0712"] and not local:
        c.total_steps, c.optimizer.boundaries = 100_000, (75_000.0,)
    return c
