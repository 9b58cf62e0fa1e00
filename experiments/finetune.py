r"""Any data set of your own: ResNet-50 FPN, fine-tuned on whatever is in a folder.

    python scripts/train.py --config=experiments/finetune.py --workdir=runs/mine \
        --config.data.root=FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/evaluate.py --checkpoint=runs/mine --pictures=12

The format is recognised (COCO, VOC XML, YOLO, tables, Supervisely, LabelMe, Hugging
Face image folders; docs/data.md), and so are the splits: the set's own, or 80 to 20 by
a hash of the images' names. The run records what was found, in place of "auto". The
weights are those of Keras' ResNet50 by layer name; with `:weights=timm` those of timm
or torchvision, `--config.model.backbone.pretrained=hf:timm/resnet50.a1_in1k`.

Measured: not yet.
"""

from typing import Any

import ml_collections

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, weights="keras")
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=1000))
    c.update(common.faster_rcnn())
    c.eval_every = 500
    c.checkpoint_every = 250
    c.frozen = (*common.RESNET_FROZEN, "backbone/layer2")

    c.data = common.data(
        "auto",  # or the name of a source, as in docs/data.md
        root="",
        train_split="auto",  # or "train", "all[:80%]"
        eval_split="auto",
        group="",  # a regular expression: what images of one origin have in common
        short_side=300,
        max_side=400,
        canvas=((304, 400), (400, 304)),
        max_boxes=100,
        cache=True,
    )
    c.model = dict(  # models.build_detector
        common.imagenet_resnet50(args["weights"]),
        fpn=dict(channels=256),
        anchors=dict(
            strides=(4, 8, 16, 32, 64),
            sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
        ),
    )
    c.roi_targets.num_samples = 128
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(pre_nms=1000, post_nms=300)
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.02,
        reference_batch=8,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=50,
    )
    return c
