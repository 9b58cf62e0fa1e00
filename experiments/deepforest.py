r"""Trees in large aerial photographs: whole images, or tiles of 400 pixels.

    pip download --no-deps deepforest==2.1.0
    python scripts/bench/deepforest.py --wheel=deepforest-2.1.0-py3-none-any.whl \
        --output=TREES
    python scripts/train.py --config=experiments/deepforest.py:tiles,runlocal \
        --workdir=runs/tiles --config.data.root=TREES \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/bench/prediction.py --config=experiments/deepforest.py \
        --checkpoint=runs/tiles --sweep=views

The package deepforest (MIT) carries four photographs with 951 boxes; the first script
writes them as a table, two photographs to train on (574 and 61 trees, 2299x2472 and
400x400 pixels) and two to test on (279 and 37, 1249x1035 and 400x400). A tree is 37
pixels wide at the median.

Arguments: `:tiles` trains on tiles of 400 pixels, which overlap by a fifth, in place of
whole photographs; `:runlocal` is for two CPU cores (stem to layer2 frozen). The rows of
`sweep_views` are the whole photographs, whole and tiles, and tiles alone, merged by IoU
and by the smaller area. After `:tiles,runlocal` AP is 0.014 on whole photographs and
0.081 on tiles, recall 0.146 and 0.646 (one run, 2026-11-30; docs/predict.md).
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, tiles=False)
    local = args["runlocal"]
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=300 if local else 2000))
    c.update(common.faster_rcnn())
    c.frozen = common.RESNET_FROZEN
    if local:
        c.frozen += ("backbone/layer2",)
    tiles = dict(size=400, overlap=0.2, min_visible=0.3)
    c.data = common.data(
        "csv",
        root="",
        train_split="train",
        eval_split="test",
        short_side=400,
        max_side=512,
        canvas=(416, 512),
        max_boxes=600,
        cache=True,
        **(dict(tiles=tiles) if args["tiles"] else {}),
    )
    c.model = dict(  # models.build_detector
        common.keras_resnet50(),
        fpn=dict(channels=256),
        anchors=dict(sizes=(16.0, 32.0, 64.0, 128.0, 256.0)),
    )
    c.roi_targets.num_samples = 128
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(pre_nms=1000, post_nms=500)
    c.postprocess.max_detections = 600
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.005,
        reference_batch=2,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=50,
    )
    return c


def sweep_views() -> Iterator[dict[str, Any]]:
    """The same weights on whole photographs, and with tiles."""
    yield {"views.tile": 0}
    yield {"views.tile": 400}
    yield {"views.tile": 400, "views.whole": False}
    yield {"views.tile": 400, "views.merge": "smaller", "views.iou": 0.6}
