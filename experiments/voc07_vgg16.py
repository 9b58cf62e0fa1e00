r"""The paper's main row: VGG-16 on VOC 2007, trained end to end (approximate joint).

    python scripts/train.py --config=experiments/voc07_vgg16.py --workdir=runs/voc07 \
        --config.data.root=VOCdevkit --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/voc07   # the paper's mAP is VOC07

Arguments: `:0712` adds VOC 2012 trainval, `:tfds` reads VOC from TFDS,
which needs no `data.root`, `:practice` takes py-faster-rcnn's loss in
place of eq. (1), `:runlocal` is small, for two CPU cores.

FILE has VGG-16 of ImageNet under torchvision's names: Caffe's weights, as the paper, or
with `:torchvision` those of torchvision (`weights/vgg.py`).

Published, VOC 2007 test, mAP of the 11-point metric in %:

| code | 07 | 07+12 |
| --- | --- | --- |
| paper, four-step training (Table 3) | 69.9 | 73.2 |
| simple-faster-rcnn-pytorch, end to end, Caffe's weights | 70.0 to 71.2 | |
| the same, torchvision's weights | 68.5 to 70.1 | |
| tf-faster-rcnn, end to end | 70.8 | 75.7 |

The noise of a repeat is 0.4. Cost in the paper: 198 ms an image on a K40, of which the
RPN's share is 10 (Table 5). Ours: not run: needs VOC and ImageNet weights.

Its ablations, trained end to end where the paper trained in four steps, one run a row:

    python scripts/sweep.py --config=experiments/voc07_vgg16.py --sweep=anchors \
        --workdir=runs/anchors --config.data.root=VOCdevkit \
        --config.model.backbone.pretrained=FILE

| `--sweep` | published mAP in %, in the order of the rows | ours |
| --- | --- | --- |
| `anchors` (Table 8) | 65.8, 66.7, 68.8, 67.9, 69.8, 69.9 | not run: needs VOC |
| `lambda` (Table 9) | 67.2, 68.9, 69.9, 69.1 | not run: needs VOC |

The number of proposals in testing needs one checkpoint only:

    python scripts/evaluate_sweep.py --config=experiments/voc07_vgg16.py \
        --sweep=test_proposals --checkpoint=runs/voc07

Published for 50, 100, 150, 200, 300, 500 and 1000: 66.3, 68.9, 69.5, 69.8, 69.9, 69.8,
69.8 (mAP in %, four-step training). Ours: not run: needs VOC.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg,
        runlocal=False,
        torchvision=False,
        practice=False,
        tfds=False,
        **{"0712": False},
    )
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    # Two images a step are py-faster-rcnn's iter_size of 2.
    c.update(common.run(batch_size=2, total_steps=100 if local else 70_000))
    c.update(common.paper(runlocal=local, practice=args["practice"]))
    c.frozen = common.VGG_FROZEN
    c.data = common.voc07(runlocal=local, also12=args["0712"], tfds=args["tfds"])
    c.model = dict(
        common.vgg16(torchvision=args["torchvision"], runlocal=local),
        **common.vgg16_rpn(128, 256, 512, runlocal=local),
    )
    if not local:
        c.eval_every, c.checkpoint_every = 10_000, 5_000
    if args["0712"] and not local:
        c.total_steps, c.optimizer.boundaries = 110_000, (80_000.0,)
    return c


def sweep_anchors() -> Iterator[dict[str, Any]]:
    """Table 8: scales by aspect ratios."""
    for scales, ratios in (
        ((128,), (1.0,)),
        ((256,), (1.0,)),
        ((128,), (0.5, 1.0, 2.0)),
        ((256,), (0.5, 1.0, 2.0)),
        ((128, 256, 512), (1.0,)),
        ((128, 256, 512), (0.5, 1.0, 2.0)),
    ):
        yield {"model.anchors.sizes": (scales,), "model.anchors.aspect_ratios": ratios}


def sweep_lambda() -> Iterator[dict[str, Any]]:
    """Table 9: the weight of the RPN's box term in eq. (1)."""
    for weight in (0.1, 1.0, 10.0, 100.0):
        yield {"loss_weights.rpn_box": weight}


def sweep_test_proposals() -> Iterator[dict[str, Any]]:
    """How many proposals are classified in testing."""
    yield from common.proposal_counts(50, 100, 150, 200, 300, 500, 1000)
