"""Faster R-CNN's groups as torchvision has them, and what is made of them."""

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
