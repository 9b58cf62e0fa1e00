r"""The paper's comparison on blood cells: Fast R-CNN, joint and alternating training.

One network (ResNet-50 from ImageNet weights, FPN on strides 8 to 32) and one schedule;
only where the proposals come from differs. DATA and WEIGHTS stand for
`data.root=BCCD_FOLDER` and
`model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz`, each with its prefix.

Selective search and Fast R-CNN (`:fast_rcnn`):

    python scripts/make_proposals.py --config=experiments/bccd_paper.py:fast_rcnn \
        --config.DATA --splits=train,val --max_side=500 --output='proposals/{split}.npz'
    python scripts/train.py --config=experiments/bccd_paper.py:fast_rcnn \
        --workdir=runs/paper_fast --config.DATA --config.WEIGHTS

Faster R-CNN, approximate joint training:

    python scripts/train.py --config=experiments/bccd_paper.py \
        --workdir=runs/paper_joint --config.DATA --config.WEIGHTS

Faster R-CNN, four-step alternating training (`:step=1` to `4`):

    python scripts/train_alternating.py --config=experiments/bccd_paper.py \
        --workdir=runs/paper_alternating --config.DATA --config.WEIGHTS

Then, of each: `python scripts/evaluate.py --checkpoint=RUN` (of the last,
`runs/paper_alternating/step4`). The RPN in testing without its parts, as in Table 2:

    python scripts/evaluate_sweep.py --config=experiments/bccd_paper.py --sweep=rpn \
        --checkpoint=runs/paper_joint

Half-size images, stem to layer2 frozen, for two CPU cores. Measured: see
docs/results-paper.md.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, fast_rcnn=False, step=0)
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=10 if args["runlocal"] else 300))
    c.update(common.faster_rcnn())
    c.frozen = tuple(f"backbone/{n}" for n in ("conv1", "bn1", "layer1", "layer2"))
    c.checkpoint_every = 100
    c.data = common.data(
        "voc",
        train_split="train",
        eval_split="val",
        short_side=240,
        max_side=320,
        canvas=(240, 320),
        max_boxes=64,
        cache=True,
    )
    c.model = common.keras_resnet50()
    c.model["backbone"]["out_strides"] = (8, 16, 32)
    c.model.update(
        fpn=dict(channels=256, pool_levels=0),
        anchors=dict(strides=(8, 16, 32), sizes=(24.0, 48.0, 96.0)),
        roi_align=dict(strides=(8, 16, 32), canonical_size=112.0),
        box_head=dict(widths=(512, 512)),
    )
    c.roi_targets.num_samples = 64
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(
        pre_nms=1000, post_nms=300, use_scores=True, use_deltas=True
    )
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=50,
    )
    if args["fast_rcnn"]:
        common.external_proposals(c, "proposals/{split}.npz", 2000)
    elif args["step"]:
        common.alternating(c, args["step"])
    return c


def sweep_lambda() -> Iterator[dict[str, Any]]:
    """Table 9, in practice's form: lambda = 1 there is about 10 in the paper's."""
    for weight in (0.01, 0.1, 1.0, 10.0):
        yield {"loss_weights.rpn_box": weight}


def sweep_rpn() -> Iterator[dict[str, Any]]:
    """Table 2: numbers of proposals, then without NMS, scores or deltas."""
    yield from common.proposal_counts(300, 50, 100, 1000)
    yield from common.without_parts_of_the_rpn(2000)
