r"""The paper's small model: ZF on VOC 2007, trained end to end (approximate joint).

    python scripts/train.py --config=experiments/voc07_zf.py --workdir=runs/voc07_zf \
        --config.data.root=VOCdevkit --config.model.backbone.pretrained=FILE
    python scripts/evaluate.py --checkpoint=runs/voc07_zf   # the paper's mAP is VOC07

Arguments: `:0712` adds VOC 2012 trainval, `:tfds` reads VOC from TFDS,
which needs no `data.root`, `:practice` takes py-faster-rcnn's loss in
place of eq. (1), `:fast_rcnn` is Fast R-CNN on selective search's proposals, `:step=1`
to `4` are the steps of alternating training (scripts/train_alternating.py), `:runlocal`
is small, for two CPU cores.

Published, VOC 2007 test, mAP of the 11-point metric in % (Table 2, four-step training):
59.9, five repeats 59.5 to 60.4; with selective search 58.7. Cost there: 59 ms an image
on a K40 (Table 5). Ours: not run: needs VOC, and ImageNet weights of ZF, for which
there is no reader yet.

RoIs are pooled to 6x6, what the fc6 of ZF was trained on; 7x7, as VGG-16's, is
`--config.model.roi_pool.output_size=7`.

Shared or not (Table 2): the network of step 4, 59.9, or that of step 2, 58.7, whose RPN
is another network:

    python scripts/train_alternating.py --config=experiments/voc07_zf.py \
        --workdir=runs/zf --config.data.root=VOCdevkit
    python scripts/evaluate.py --checkpoint=runs/zf/step4
    python scripts/evaluate.py --checkpoint=runs/zf/step2 \
        --config.data.max_proposals=300

The RPN in testing without its parts (lower half of Table 2), on one checkpoint:

    python scripts/evaluate_sweep.py --config=experiments/voc07_zf.py --sweep=rpn \
        --checkpoint=runs/voc07_zf

The paper has a Fast R-CNN of selective search's proposals test them; here it is the
RPN's own detector. Published, in the order of the rows: 300, 100 and 1000 proposals
56.8, 55.1, 56.3; no NMS 55.2; no scores, 100, 300 and 1000: 44.6, 51.4, 55.8; no
deltas, 300 and 1000: 52.1, 51.3.

One stage (Table 10): Fast R-CNN on a dense grid of windows, the 9 anchors of each
place, in training and testing:

    python scripts/sweep.py --config=experiments/voc07_zf.py --sweep=stages \
        --workdir=runs/stages --config.data.root=VOCdevkit

Published: one stage 53.8, two 58.7. None of these was run: they need VOC.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(
        arg,
        runlocal=False,
        practice=False,
        fast_rcnn=False,
        step=0,
        tfds=False,
        **{"0712": False},
    )
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    # Two images a step are py-faster-rcnn's iter_size of 2.
    c.update(common.run(batch_size=2, total_steps=100 if local else 70_000))
    c.update(common.paper(runlocal=local, practice=args["practice"]))
    c.data = common.voc07(runlocal=local, also12=args["0712"], tfds=args["tfds"])
    c.model = dict(  # models.build_detector
        backbone=dict(name="zf", pretrained=""),
        anchors=common.paper_anchors(128, 256, 512, runlocal=local),
        rpn=dict(channels=256, objectness="softmax"),
        roi_pool=dict(stride=16, output_size=6),  # 6 is what ZF's fc6 was trained on
        box_head=dict(name="zf", widths=(256, 256) if local else (4096, 4096)),
        pixel_mean=(122.7717, 115.9465, 102.9801),
        pixel_std=(1.0, 1.0, 1.0),
        dtype="float32",
    )
    if not local:
        c.eval_every, c.checkpoint_every = 10_000, 5_000
    if args["0712"] and not local:
        c.total_steps, c.optimizer.boundaries = 110_000, (80_000.0,)
    if args["fast_rcnn"]:
        count = 200 if local else 2000
        common.external_proposals(c, "proposals/{split}.npz", count)
        c.roi_targets.update(num_samples=64, bg_lo=0.1)  # 128 RoIs of two images
    elif args["step"]:
        common.alternating(c, args["step"])
    return c


def sweep_rpn() -> Iterator[dict[str, Any]]:
    """Table 2: numbers of proposals, then without NMS, scores or deltas."""
    yield from common.proposal_counts(300, 100, 1000)
    yield from common.without_parts_of_the_rpn()


def sweep_stages() -> Iterator[dict[str, Any]]:
    """Table 10: one stage (all windows are classified), two stages."""
    # A map of 38 x 63 places has 21,546 windows.
    windows = dict(use_scores=False, use_deltas=False, nms_iou=1.0)
    windows.update(pre_nms=20_000, post_nms=20_000)
    yield {
        "loss_weights.rpn_cls": 0.0,
        "loss_weights.rpn_box": 0.0,
        **{
            f"proposals.{when}.{k}": v
            for when in ("train", "eval")
            for k, v in windows.items()
        },
    }
    yield {"loss_weights.rpn_cls": 1.0}
