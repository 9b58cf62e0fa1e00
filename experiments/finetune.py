r"""Any data set of your own: ResNet-50 FPN, fine-tuned on whatever is in a folder.

    python scripts/train.py --config=experiments/finetune.py --workdir=runs/mine \
        --config.data.root=FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz
    python scripts/evaluate.py --checkpoint=runs/mine --pictures=12

The format is recognised (COCO, VOC XML, YOLO, tables, Supervisely, LabelMe, Hugging
Face image folders; docs/data.md), and so are the splits: the set's own, or 80 to 20 by
a hash of the images' names. What is left open below is chosen from the images and the
boxes (`frcnn_jax/training/recipe.py`), any flag overrides it, and `--config.minutes=20`
makes as many steps as that time holds. The log says what was found and chosen and why;
the run records the values. The weights' conventions follow from their file.

Arguments: `:cascade` for three box heads that refine one box a RoI: +3.7 AP (+2.8 to
+4.6) at equal steps on three folds of BCCD's training photographs, a step takes 1.3
times as long (docs/results.md, with what else was tried).

Gradients are clipped: without, `:cascade` was not finite on DeepPCB after 15 to 42
steps. The figures of one box head below are without.

BCCD, `:cascade` with Soft-NMS, seeds 0, 1, 2, alone on two cores of an AMD EPYC,
2026-11-30: 708, 701 and 684 steps in 19.9, 19.4 and 18.7 minutes; val AP 0.620, 0.617,
0.615, AP50 0.904, 0.906, 0.901; torchvision in 18.9 minutes: 0.565, 0.899 (README.md).

DeepPCB, 200 test images, `:cascade` with Soft-NMS and a rate of 0.01, seeds 0, 1, 2,
alone on two cores of an AMD EPYC, 2026-11-30: 242, 229 and 254 steps in 9.0, 8.6 and
9.2 minutes; AP 0.549, 0.557, 0.577, AP50 0.842, 0.841, 0.869; torchvision in 8.4
minutes: 0.411, 0.751 (README.md).

Measured (two cores of an Intel Xeon with AVX-512, ImageNet weights of Keras' ResNet50).
BCCD, 205 photographs, seeds 0, 1, 2, alone, 2026-11-30: 794, 847 and 862 steps in 14.0,
14.9 and 15.0 minutes; val AP 0.592, 0.594, 0.590, AP50 0.915, 0.909, 0.912; torchvision
in nearly the same minutes: 0.566 (`scripts/bench/accuracy.py`). With other work of low
priority beside it, 2026-11-29: BCCD, one run of 1025 steps in 21 min 41 s, AP 0.601,
AP50 0.902; raccoon by its tables, 160 photographs and 40 to evaluate on, seeds 0, 1, 2:
800 steps in 18:57, 18:57 and 20:41 minutes; AP 0.500, 0.533, 0.508 (mean 0.514), AP50
0.942, 0.947, 0.934 (mean 0.941).
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder as left_open

from experiments import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = common.parse_arg(arg, runlocal=False, cascade=False)
    c: Any = ml_collections.ConfigDict()
    c.update(common.run(batch_size=2, total_steps=1))
    for leaf in ("batch_size", "eval_batch_size", "total_steps"):
        c[leaf] = left_open(int)
    c.eval_every, c.checkpoint_every = left_open(int), left_open(int)
    c.minutes = 0.0  # e.g. 20: as many steps as they hold, timed once
    c.update(common.faster_rcnn())
    c.frozen = left_open(tuple)

    c.data = common.data(
        "auto",  # or the name of a source, as in docs/data.md
        root="",
        train_split="auto",  # or "train", "all[:80%]"
        eval_split="auto",
        group="",  # a regular expression: what images of one origin have in common
        short_side=left_open(int),
        max_side=left_open(int),
        canvas=left_open(tuple),
        max_boxes=left_open(int),
        cache=True,
    )
    c.model = dict(  # models.build_detector
        backbone=dict(
            name="resnet",
            depth=50,
            pretrained="",
            norm=left_open(str),
            norm_eps=left_open(float),
            stride_in_1x1=left_open(bool),
            remat=False,
        ),
        dtype="float32",
        pixel_mean=left_open(tuple),
        pixel_std=left_open(tuple),
        fpn=dict(channels=256),
        anchors=dict(
            strides=(4, 8, 16, 32, 64),
            sizes=left_open(tuple),
            aspect_ratios=left_open(tuple),
        ),
    )
    c.roi_targets.num_samples = 128
    c.proposals.train.update(pre_nms=1000, post_nms=500)
    c.proposals.eval.update(pre_nms=1000, post_nms=300)
    c.postprocess.score = 0.01  # AP is over all recalls: unlikely boxes add to it
    c.optimizer = dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=left_open(float),
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=10.0,  # of the gradient; BCCD has 3 to 8, but for the first steps
        schedule="step",
        boundaries=(0.7, 0.9),
        warmup_steps=left_open(int),
    )
    if args["cascade"]:
        common.cascade(c)
    return c
