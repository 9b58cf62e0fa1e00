"""The settings of the papers of Fast and Faster R-CNN, and of py-faster-rcnn."""

from collections.abc import Iterator
from typing import Any

from experiments.common.detectors import data, roi_losses


def vgg16(*, torchvision: bool, runlocal: bool) -> dict[str, Any]:
    """The group `model` of Fast R-CNN on VGG-16, for Caffe's or torchvision's weights.

    fc6 and fc7 have 4096 units (`runlocal`: 256).
    """
    model = dict(  # models.build_detector
        backbone=dict(name="vgg", pretrained=""),
        roi_pool=dict(stride=16, output_size=7),
        box_head=dict(name="vgg", widths=(256, 256) if runlocal else (4096, 4096)),
        dtype="float32",
    )
    if torchvision:
        return model
    return dict(
        model,
        backbone=dict(name="vgg", bgr=True, pretrained=""),
        pixel_mean=(122.7717, 115.9465, 102.9801),
        pixel_std=(1.0, 1.0, 1.0),
    )


def vgg16_rpn(*scales: int, runlocal: bool) -> dict[str, Any]:
    """The groups of its RPN: 512 channels, softmax as in the paper."""
    return dict(
        anchors=paper_anchors(*scales, runlocal=runlocal),
        rpn=dict(channels=512, objectness="softmax"),
    )


def without_parts_of_the_rpn(all_boxes: int = 6000) -> Iterator[dict[str, Any]]:
    """Changes of the lower half of Table 2: the RPN in testing, without ...

    NMS (the best `all_boxes`), scores (a random choice, so no NMS either), deltas (the
    anchors themselves).
    """
    no_nms = {"proposals.eval.pre_nms": all_boxes, "proposals.eval.nms_iou": 1.0}
    yield {"proposals.eval.post_nms": all_boxes, **no_nms}
    for count in (100, 300, 1000):
        yield {
            "proposals.eval.post_nms": count,
            "proposals.eval.use_scores": False,
            **no_nms,
        }
    for count in (300, 1000):
        yield {"proposals.eval.post_nms": count, "proposals.eval.use_deltas": False}


# Fast R-CNN sec. 4.5 trains conv3_1 and up.
VGG_FROZEN = tuple(f"backbone/conv{i}_{j}" for i in (1, 2) for j in (1, 2))


def paper(*, runlocal: bool, practice: bool = False) -> dict[str, Any]:
    """Targets, losses and post-processing of the paper and of py-faster-rcnn.

    The loss is eq. (1): N_cls = 256, N_reg = the map's locations, lambda = 10, smooth
    L1 with beta = 1. With `practice` it is py-faster-rcnn's: both terms over the 256
    sampled anchors, lambda = 1, beta = 1/9. The rest is what its end-to-end training
    has; a side of 16 pixels of a VOC image has about 25.6 in the network.
    """
    rpn_stds, roi_stds = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)
    kept = dict(
        nms_iou=0.7,
        min_size=6.4 if runlocal else 25.6,
        use_scores=True,  # Table 2 takes away the one or the other
        use_deltas=True,
        stds=rpn_stds,
    )
    locations = 10 * 16 if runlocal else 38 * 63  # see paper_images
    rpn_loss: dict[str, float] = dict(beta=1.0, box_normalizer=locations)
    if practice:
        rpn_loss = dict(beta=1 / 9)
    return dict(
        rpn_targets=dict(  # targets.rpn_targets
            fg_iou=0.7,
            bg_iou=0.3,
            num_samples=256,
            fg_fraction=0.5,
            straddle=0.0,
            stds=rpn_stds,
        ),
        roi_targets=dict(  # targets.roi_targets
            fg_iou=0.5,
            bg_iou=0.5,
            bg_lo=0.0,
            num_samples=128,
            fg_fraction=0.25,
            stds=roi_stds,
        ),
        proposals=dict(  # rpn_proposals, proposals.select_proposals
            train=dict(pre_nms=12000, post_nms=2000, **kept),
            eval=dict(pre_nms=6000, post_nms=300, **kept),
        ),
        rpn_loss=rpn_loss,  # losses.rpn_loss
        detector_loss=dict(beta=1.0),  # losses.detector_loss
        **roi_losses(),
        postprocess=dict(  # proposals.postprocess
            score=0.05, nms_iou=0.3, max_detections=100, stds=roi_stds
        ),
        loss_weights=dict(
            rpn_cls=1.0, rpn_box=1.0 if practice else 10.0, roi_cls=1.0, roi_box=1.0
        ),
        optimizer=dict(  # training.optimizer.make_optimizer
            name="sgd",
            learning_rate=1e-3,
            reference_batch=0,  # any batch has this rate
            momentum=0.9,
            weight_decay=5e-4,
            bias_rate=2.0,
            schedule="step",
            boundaries=(50_000.0,),
        ),
    )


def paper_anchors(*scales: int, runlocal: bool) -> dict[str, Any]:
    """The group `anchors`: `scales` in pixels by three ratios, as py-faster-rcnn's."""
    if runlocal:
        scales = tuple(s // 4 for s in scales)
    ratios = (0.5, 1.0, 2.0)
    return dict(strides=(16,), sizes=(scales,), aspect_ratios=ratios, rounding="legacy")


def paper_images(*, runlocal: bool) -> dict[str, Any]:
    """Sides of the paper's images: 600, at most 1000 (`runlocal`: a quarter of that).

    The canvases give maps of 38 x 63 = 2,394 locations, the paper's "about 2,400".
    """
    if runlocal:
        return dict(short_side=150, max_side=250, canvas=((160, 256), (256, 160)))
    return dict(short_side=600, max_side=1000, canvas=((608, 1008), (1008, 608)))


def voc07(*, runlocal: bool, also12: bool, tfds: bool) -> dict[str, Any]:
    """The group `data`: VOC 2007 trainval (`also12`: and 2012's), tested on 2007.

    From the folder VOCdevkit, or what TFDS has prepared (`data/sources/tfds.py`).
    """
    shared: dict[str, Any] = dict(max_boxes=64, **paper_images(runlocal=runlocal))
    if not tfds:
        return data(
            "voc",  # root is the folder VOCdevkit
            classes="voc",
            train_split="2007_trainval+2012_trainval" if also12 else "2007_trainval",
            eval_split="2007_test",
            **shared,
        )
    shared.update(train_split="train+validation", eval_split="test")
    if not also12:
        return data("tfds:voc/2007", root="", **shared)
    sets = {
        "2007": dict(name="tfds:voc/2007", root=""),
        "2012": dict(name="tfds:voc/2012", root="", splits={"test": "train[:0]"}),
    }
    return data("mix", datasets=sets, classes=(), **shared)
