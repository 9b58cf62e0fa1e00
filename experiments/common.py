"""Parts that experiments share: plain functions that return plain dicts."""

from collections.abc import Iterator
from typing import Any


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """`"runlocal,depth=101"` over `defaults`, each value of its default's type.

    A bare name sets a boolean. Raises ValueError for a name that has no default.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f"config argument {name!r} is unknown: expected one of "
                f"{sorted(defaults)}"
            )
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config argument {item!r}: expected true or false")
            values[name] = text.lower() in ("", "true", "1")
        else:
            try:
                values[name] = kind(text)
            except ValueError:
                raise ValueError(
                    f"config argument {item!r}: expected {name}={kind.__name__}"
                ) from None
    return values


def run(*, batch_size: int, total_steps: int) -> dict[str, Any]:
    """The leaves of a run that are no group of keyword arguments."""
    return dict(
        algorithm="faster_rcnn",  # a module of training.algorithms, or a dotted path
        seed=0,
        batch_size=batch_size,
        eval_batch_size=batch_size,
        total_steps=total_steps,
        eval_every=total_steps,
        checkpoint_every=total_steps,
        log_every=20,
        frozen=(),  # path prefixes of parameters that do not train
        parallel="pmap",  # or "shard_map": over the devices, with equal results
        init_from="",  # a checkpoint to fine-tune, any number of classes
        loss_weights=dict(rpn_cls=1.0, rpn_box=1.0, roi_cls=1.0, roi_box=1.0),
        accumulate=1,  # parts that a device's share of the batch is computed in
        ema_decay=0.0,  # e.g. 0.999: evaluate and keep the parameters' running mean
    )


def data(name: str, **values: Any) -> dict[str, Any]:
    """The group `data` (data.pipeline.build and the source's load), faults included.

    Leaves that error messages mention can be set: `--config.data.on_bad_image=skip`.
    """
    sources = dict(
        voc=dict(root="", classes=()),
        coco=dict(
            root="",
            annotations="annotations/instances_{split}.json",
            images="{split}",
        ),
    )
    return dict(
        name=name,
        **{
            **dict(on_bad_image="error", on_overflow="error", flip=True),
            **dict(cache=False, reduced=True, threads=4, workers=0),
            **sources.get(name, {}),
            **values,
        },
    )


def faster_rcnn() -> dict[str, Any]:
    """Targets, losses and post-processing of torchvision's FPN models.

    Each group is the keyword arguments of the function named beside it.
    """
    rpn_stds, roi_stds = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)
    return dict(
        rpn_targets=dict(  # targets.rpn_targets
            fg_iou=0.7, bg_iou=0.3, num_samples=256, fg_fraction=0.5, stds=rpn_stds
        ),
        roi_targets=dict(  # targets.roi_targets
            fg_iou=0.5, bg_iou=0.5, num_samples=512, fg_fraction=0.25, stds=roi_stds
        ),
        proposals=dict(  # rpn_proposals, proposals.select_proposals
            train=dict(pre_nms=2000, post_nms=2000, nms_iou=0.7, stds=rpn_stds),
            eval=dict(pre_nms=1000, post_nms=1000, nms_iou=0.7, stds=rpn_stds),
        ),
        rpn_loss=dict(beta=1 / 9),  # losses.rpn_loss
        detector_loss=dict(beta=1 / 9),  # losses.detector_loss
        **roi_losses(),
        postprocess=dict(  # proposals.postprocess
            score=0.05, nms_iou=0.5, max_detections=100, stds=roi_stds
        ),
    )


def roi_losses() -> dict[str, Any]:
    """The groups that put another loss in place of one of `detector_loss`'s terms.

    `--config.roi_box_loss.name=giou`; their other leaves are keyword arguments.
    """
    return dict(
        roi_cls_loss=dict(name=""),  # cross_entropy, focal, my_module.my_function
        roi_box_loss=dict(name=""),  # smooth_l1, l1, iou, giou, diou, ciou, yours
    )


def cascade(c: Any, *, detectron2: bool = False) -> None:
    """Turns a Faster R-CNN's configuration into a Cascade R-CNN's of three, in place.

    IoU 0.5, 0.6 and 0.7. The losses of the stages have the weights 1, 1/2 and 1/4 of
    the paper's code and of MMDetection; Detectron2's are 1, but a third of their
    gradient reaches the features.
    """
    last = (1 / 30, 1 / 30, 1 / 15, 1 / 15)
    stds = (
        (0.05, 0.05, 0.1, 0.1),
        last if detectron2 else (0.033, 0.033, 0.067, 0.067),
    )
    c.algorithm, c.model.stages = "cascade_rcnn", 3
    c.cascade = dict(  # algorithms.cascade_rcnn.later_stages
        fg_iou=(0.6, 0.7),
        stds=stds,
        feature_gradient=1 / 3 if detectron2 else 1.0,
    )
    c.postprocess.stds = stds[-1]
    rpn = {name: c.loss_weights[name] for name in ("rpn_cls", "rpn_box")}
    weights = (1.0, 1.0, 1.0) if detectron2 else (1.0, 0.5, 0.25)
    c.loss_weights = dict(
        rpn,
        **{f"roi_cls_{i}": w for i, w in enumerate(weights, start=1)},
        **{f"roi_box_{i}": w for i, w in enumerate(weights, start=1)},
    )


def external_proposals(c: Any, file: str, count: int) -> None:
    """Turns a Faster R-CNN's configuration into a Fast R-CNN's, in place.

    Its proposals are the first `count` of each image in `file`.
    """
    c.algorithm = "fast_rcnn"
    c.model.external_proposals = True
    for group in ("anchors", "rpn"):
        if group in c.model:
            del c.model[group]
    c.data.proposals = file
    c.data.max_proposals = count


def alternating(c: Any, step: int) -> None:
    """Turns a Faster R-CNN's configuration into one step of section 3.2, in place.

    1. The RPN, from the backbone's own weights. 2. Fast R-CNN, from the same weights,
    on the proposals of 1: nothing is shared yet. 3. The RPN anew on the backbone of 2,
    which is frozen. 4. The detector on the backbone of 2 and the proposals of 3, which
    are frozen: one network. `scripts/train_alternating.py` sets `init_from` and
    `data.proposals`.
    """
    if step not in (1, 2, 3, 4):
        raise ValueError(f"config argument step={step}: expected 1, 2, 3 or 4")
    shared = ("backbone", "fpn") if "fpn" in c.model else ("backbone",)
    if step in (1, 3):
        c.loss_weights.update(roi_cls=0.0, roi_box=0.0)
        c.frozen += ("box_head",)
    if step == 2:
        external_proposals(c, "", c.proposals.train.post_nms)
    if step == 3:
        c.frozen = (*shared, "box_head")
    if step == 4:
        c.loss_weights.update(rpn_cls=0.0, rpn_box=0.0)
        c.frozen = (*shared, "rpn_head")


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


def prediction() -> Iterator[dict[str, Any]]:
    """Changes that cost no training: Soft-NMS, mirrored images, another size, all."""
    soft = {"postprocess.name": "soft_nms", "postprocess.score": 0.001}
    yield {"views.flip": False}  # as it is
    yield soft
    yield {"views.flip": True}
    yield {"views.flip": True, "views.short_sides": "(300, 400)"}
    yield {**soft, "views.flip": True, "views.short_sides": "(300, 400)"}


def proposal_counts(*counts: int) -> Iterator[dict[str, Any]]:
    """Changes that give the number of proposals in testing, NMS and all."""
    for count in counts:
        yield {"proposals.eval.post_nms": count}


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


def torchvision(*, runlocal: bool, short_side: int = 800, max_side: int = 1333) -> dict:
    """The groups that torchvision's detectors share, and COCO as their data.

    Anchors in the padding are used, as torchvision does. The canvases are multiples of
    64, on which torchvision's whole-pixel strides are the true ones. 26 epochs of
    117,266 images (those with objects) in batches of 16, rates down at 16 and 22.
    """
    groups = faster_rcnn()
    groups["rpn_targets"]["exclude_padding"] = False
    for group in groups["proposals"].values():
        group["exclude_padding"] = False
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
        optimizer=dict(  # training.optimizer.make_optimizer
            name="sgd",
            learning_rate=0.02,
            reference_batch=16,
            momentum=0.9,
            weight_decay=1e-4,
            decay_biases=True,
            schedule="step",
            boundaries=(16 / 26, 22 / 26),
            warmup_steps=1000,
            warmup_factor=1e-3,
        ),
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
    groups = faster_rcnn()
    groups["rpn_targets"]["exclude_padding"] = False
    for group in groups["proposals"].values():
        group["exclude_padding"] = False
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
        optimizer=dict(  # training.optimizer.make_optimizer
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
        ),
    )


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


def convnext(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: ConvNeXt of `size` "t", "s" or "b" (a narrow one)."""
    sizes = {
        "t": ((3, 3, 9, 3), 96),
        "s": ((3, 3, 27, 3), 96),
        "b": ((3, 3, 27, 3), 128),
    }
    if size not in sizes:
        raise ValueError(f"config argument size={size}: expected t, s or b")
    depths, width = ((1, 1, 3, 1), 32) if runlocal else sizes[size]
    return dict(
        name="convnext",
        depths=depths,
        width=width,
        stochastic_depth=dict(t=0.4, s=0.6, b=0.7)[size],
        remat=False,
        pretrained="",
    )


def swin(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: Swin of `size` "t", "s" or "b" (a narrow one)."""
    sizes = {
        "t": ((2, 2, 6, 2), 96),
        "s": ((2, 2, 18, 2), 96),
        "b": ((2, 2, 18, 2), 128),
    }
    if size not in sizes:
        raise ValueError(f"config argument size={size}: expected t, s or b")
    depths, width = ((2, 1, 2, 1), 32) if runlocal else sizes[size]
    return dict(
        name="swin",
        depths=depths,
        width=width,
        stochastic_depth=dict(t=0.2, s=0.2, b=0.3)[size],
        remat=False,
        pretrained="",
    )


def vit(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: ViTDet's ViT of `size` "s" or "b" (a narrow one)."""
    widths = {"s": (384, 6), "b": (768, 12)}
    if size not in widths:
        raise ValueError(f"config argument size={size}: expected s or b")
    width, heads = (64, 2) if runlocal else widths[size]
    return dict(
        name="vit",
        depth=4 if runlocal else 12,
        width=width,
        heads=heads,
        window=5 if runlocal else 14,
        global_blocks=(1, 3) if runlocal else (2, 5, 8, 11),
        positions=14,
        relative=16 if runlocal else 64,
        stochastic_depth=0.1,
        norm_eps=1e-6,
        remat=not runlocal,
        pretrained="",
    )


def dinov2(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model`: one level of stride 14 on DINOv2's ViT, `size` "s" or "b"."""
    backbone = vit(size, runlocal=runlocal)
    backbone.update(
        patch=14,
        window=0,
        positions=37,
        relative=0,
        class_token=True,
        layer_scale=1e-5,
        out_norm=True,
        stochastic_depth=0.0,
        remat=False,
    )
    anchors = dict(one_level_anchors(), strides=(14,))
    return dict(  # models.build_detector
        backbone=backbone,
        dtype="float32",
        anchors=anchors,
        rpn=dict(channels=64 if runlocal else 256),
        roi_align=dict(strides=(14,), sampling_ratio=0),
        box_head=dict(widths=(64, 64) if runlocal else (1024, 1024)),
    )


def vit_layers(depth: int) -> tuple[tuple[str, ...], ...]:
    """The layers of a ViT: patches and positions, then each block (Detectron2's)."""
    blocks = [(f"backbone/block{i}",) for i in range(depth)]
    return (("backbone/embed", "backbone/positions"), *blocks)


def convnext_layers(depths: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """The layers of a ConvNeXt by MMDetection's count: of stage 3 three blocks each."""
    third = [
        tuple(f"backbone/stage3/block{i}" for i in range(at, min(at + 3, depths[2])))
        for at in range(0, depths[2], 3)
    ]
    third[0] += ("backbone/stage3/down_norm", "backbone/stage3/down")
    return (
        ("backbone/stem", "backbone/stem_norm"),
        ("backbone/stage1",),
        ("backbone/stage2",),
        *third,
        ("backbone/stage4",),
    )


# The stem and the first stage, what peers call freeze_at=2 or three trainable layers.
RESNET_FROZEN = ("backbone/conv1", "backbone/bn1", "backbone/layer1")


def short_sides(least: int, *, runlocal: bool) -> dict[str, Any]:
    """The group `data.augment`: short sides from `least` to 800, 32 apart."""
    sides = range(least, 801, 32)
    return dict(short_sides=tuple(s // 4 if runlocal else s for s in sides))


def frozen_resnet(depth: int, **fields: Any) -> dict[str, Any]:
    """The group `model.backbone`: a ResNet whose norms keep the loaded values."""
    return dict(
        name="resnet",
        depth=depth,
        norm="frozen",
        pretrained="",
        remat=False,
        **fields,
    )


def msra_resnet(depth: int, **fields: Any) -> dict[str, Any]:
    """The group `model`, in part: Detectron2's ResNet of Caffe's weights, std 1."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(depth, stride_in_1x1=True, **fields),
        dtype="float32",
        pixel_std=(1.0, 1.0, 1.0),
    )


def resnext101() -> dict[str, Any]:
    """The group `model`, in part: Detectron2's ResNeXt-101 32x8d, stride in its 3x3."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(101, groups=32, group_width=8),
        dtype="float32",
        pixel_std=(58.395, 57.12, 57.375),
    )


def keras_resnet50() -> dict[str, Any]:
    """The group `model`, in part: ResNet-50 with the conventions of Keras' weights."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(50, stride_in_1x1=True, norm_eps=1e-3),
        dtype="float32",
        pixel_mean=(123.68, 116.779, 103.939),
        pixel_std=(1.0, 1.0, 1.0),
    )


def imagenet_resnet50(weights: str) -> dict[str, Any]:
    """The group `model`, in part: ResNet-50 for weights of "keras" or of "timm".

    torchvision's weights have the conventions of timm's.
    """
    if weights == "timm":
        return dict(backbone=frozen_resnet(50), dtype="float32")
    if weights != "keras":
        raise ValueError(f"config argument weights={weights}: expected keras or timm")
    return keras_resnet50()


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


def one_level_anchors() -> dict[str, Any]:
    """The group `anchors`: five sizes by three ratios on stride 16, Detectron2's."""
    sizes = (32, 64, 128, 256, 512)
    return dict(strides=(16,), sizes=(sizes,), rounding="detectron2")
