"""Parts that experiments share: plain functions that return plain dicts."""

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
        seed=0,
        batch_size=batch_size,
        eval_batch_size=batch_size,
        total_steps=total_steps,
        eval_every=total_steps,
        checkpoint_every=total_steps,
        log_every=20,
        frozen=(),  # path prefixes of parameters that do not train
        init_from="",  # a checkpoint to fine-tune, any number of classes
        loss_weights=dict(rpn_cls=1.0, rpn_box=1.0, roi_cls=1.0, roi_box=1.0),
    )


def faster_rcnn() -> dict[str, Any]:
    """Targets, losses and post-processing of torchvision's and Detectron2's FPN models.

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
        proposals=dict(  # proposals.select_proposals
            train=dict(pre_nms=2000, post_nms=2000, nms_iou=0.7, stds=rpn_stds),
            eval=dict(pre_nms=1000, post_nms=1000, nms_iou=0.7, stds=rpn_stds),
        ),
        rpn_loss=dict(beta=1 / 9),  # losses.rpn_loss
        detector_loss=dict(beta=1 / 9),  # losses.detector_loss
        postprocess=dict(  # proposals.postprocess
            score=0.05, nms_iou=0.5, max_detections=100, stds=roi_stds
        ),
    )
