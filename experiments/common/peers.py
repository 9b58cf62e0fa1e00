"""The recipes of torchvision, Detectron2 and MMDetection, and COCO."""

from typing import Any

from experiments.common.backbones import RESNET_FROZEN, msra_resnet, one_level_anchors
from experiments.common.detectors import cascade, data, faster_rcnn, run


def coco(*, short_side: int, max_side: int, multiple: int, runlocal: bool) -> dict:
    """The group `data`: COCO 2017 on two canvases, wide and tall.

    Sides are the least multiples of `multiple` that hold the images; batches have one
    canvas, as the peers group images by aspect. `runlocal`: a quarter of the pixels'
    side, for two CPU cores.
    """
    if runlocal:
        short_side, max_side = short_side // 4, max_side // 4
    h, w = (-(-side // multiple) * multiple for side in (short_side, max_side))
    return data(
        "coco",
        train_split="train2017",
        eval_split="val2017",
        short_side=short_side,
        max_side=max_side,
        canvas=((h, w), (w, h)),
        max_boxes=100,
        reduced=False,  # every pixel as the peers see it
    )


def short_sides(least: int, *, runlocal: bool) -> dict[str, Any]:
    """The group `data.augment`: short sides from `least` to 800, 32 apart."""
    sides = range(least, 801, 32)
    return dict(short_sides=tuple(s // 4 if runlocal else s for s in sides))


def torchvision(*, runlocal: bool, short_side: int = 800, max_side: int = 1333) -> dict:
    """The groups that torchvision's detectors share, and COCO as their data.

    Anchors in the padding are used, as torchvision does. The canvases are multiples of
    64, on which torchvision's whole-pixel strides are the true ones. 26 epochs of
    117,266 images (those with objects) in batches of 16, rates down at 16 and 22.
    """
    groups = _with_padding()
    steps = 100 if runlocal else 26 * 7329
    return dict(
        dict(
            run(batch_size=2 if runlocal else 16, total_steps=steps),
            eval_every=steps if runlocal else 7329,
            checkpoint_every=steps if runlocal else 2443,
        ),
        **groups,
        data=coco(
            short_side=short_side, max_side=max_side, multiple=64, runlocal=runlocal
        ),
        optimizer=_sgd((16 / 26, 22 / 26)),
    )


def detectron2(*, runlocal: bool, schedule: str) -> dict[str, Any]:
    """The groups that Detectron2's detectors share, and COCO as their data.

    `schedule`: "1x" (90k steps of 16 images) or "3x" (270k). L1 in both stages, short
    sides 640 to 800 in training; anchors in the padding are used, images are resized as
    Pillow does in prediction. Differences that remain: images without objects are kept,
    those that training augments are resized without smoothing, a cell of RoIAlign has
    at most 16 samples along an axis (docs/parity.md).
    """
    schedules = {
        "1x": (90_000, (60_000.0, 80_000.0)),
        "3x": (270_000, (210_000.0, 250_000.0)),
    }
    if schedule not in schedules:
        raise ValueError(f"config argument schedule={schedule}: expected 1x or 3x")
    steps, boundaries = schedules[schedule]
    groups = _with_padding()
    groups["proposals"]["train"]["post_nms"] = 1000
    groups["rpn_loss"]["beta"] = groups["detector_loss"]["beta"] = 0.0
    groups["postprocess"]["min_size"] = 0.0
    if runlocal:  # C4 runs a stage of the backbone on each RoI: 512 take 12 GB
        steps, boundaries = 100, (0.7, 0.9)
        groups["roi_targets"]["num_samples"] = 64
    return dict(
        dict(
            run(batch_size=2 if runlocal else 16, total_steps=steps),
            eval_every=100 if runlocal else 30_000,
            checkpoint_every=100 if runlocal else 5_000,
            frozen=RESNET_FROZEN,
        ),
        **groups,
        data=dict(
            coco(short_side=800, max_side=1333, multiple=32, runlocal=runlocal),
            reduced="smooth",
            augment=short_sides(640, runlocal=runlocal),
        ),
        optimizer=_sgd(boundaries),
    )


def detectron2_c4(*, depth: int) -> dict[str, Any]:
    """The groups in which C4 differs: 15 anchors a place, stage 4 on every RoI.

    RoIAlign has its default, adaptive number of samples.
    """
    of_head = dict(depth=depth, stride_in_1x1=True, norm="frozen")
    return dict(
        model=dict(
            msra_resnet(depth, out_strides=(16,)),
            anchors=one_level_anchors(),
            rpn=dict(channels=1024),
            roi_align=dict(strides=(16,), output_size=14, sampling_ratio=0),
            box_head=dict(name="resnet", **of_head),
        ),
        proposals=dict(
            train=dict(pre_nms=12000, post_nms=2000),
            eval=dict(pre_nms=6000, post_nms=1000),
        ),
    )


def _with_padding() -> dict[str, Any]:
    """The groups of `faster_rcnn`, anchors in the padding used as the peers do."""
    groups = faster_rcnn()
    groups["rpn_targets"]["exclude_padding"] = False
    for group in groups["proposals"].values():
        group["exclude_padding"] = False
    return groups


def _sgd(boundaries: tuple[float, ...]) -> dict[str, Any]:
    """The group `optimizer` of torchvision and Detectron2, for batches of 16."""
    return dict(  # training.optimizer.make_optimizer
        name="sgd",
        learning_rate=0.02,
        reference_batch=16,
        momentum=0.9,
        weight_decay=1e-4,
        decay_biases=True,
        schedule="step",
        boundaries=boundaries,
        warmup_steps=1000,
        warmup_factor=1e-3,
    )


def giou_cascade(c: Any, *, runlocal: bool) -> None:
    """Turns a Faster R-CNN into MMDetection's Cascade R-CNN on ConvNeXt, in place.

    Each box head has four convolutions and one layer of 1024, its box loss is 1 - GIoU
    with the weight 10; 2000 proposals in training. MMDetection's heads differ in two
    things: norms synchronised over the devices where these have those of each cell, and
    boxes of each class where these have one.
    """
    width = 32 if runlocal else 256
    c.model.box_head = dict(convs=(width,) * 4, widths=(4 * width,), norm="layer")
    cascade(c)
    c.roi_box_loss.name = "giou"
    for i in (1, 2, 3):
        c.loss_weights[f"roi_box_{i}"] *= 10
    del c.detector_loss.beta  # of smooth L1
    c.rpn_loss.beta = 1 / 9
    c.proposals.train.post_nms = 2000


def adamw(layer_decay: float = 1.0, layers: Any = ()) -> dict[str, Any]:
    """The group `optimizer` of MMDetection's ConvNeXt and Swin.

    AdamW of rate 1e-4 for 16 images and decay 0.05, off for norms, biases and position
    tables; rates down at three quarters and eleven twelfths (27 and 33 epochs of 36).
    """
    return dict(  # training.optimizer.make_optimizer
        name="adamw",
        learning_rate=1e-4,
        reference_batch=16,
        momentum=0.9,
        weight_decay=0.05,
        layer_decay=layer_decay,
        layers=layers,
        schedule="step",
        boundaries=(27 / 36, 33 / 36),
        warmup_steps=1000,
        warmup_factor=1e-3,
    )
