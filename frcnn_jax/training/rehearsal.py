"""Looks at a configuration before anything is read or trained: nothing is computed.

A value out of its range, or a key that no function takes, is found in seconds, also
where the value matters only in the first evaluation, hours later.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from frcnn_jax import losses, models, ranges, roi_losses, targets
from frcnn_jax.data.images import canvases
from frcnn_jax.models import RPNOutput
from frcnn_jax.training import algorithms, named, views
from frcnn_jax.training.algorithms.fast_rcnn import postprocess_of
from frcnn_jax.training.algorithms.faster_rcnn import rpn_proposals
from frcnn_jax.training.optimizer import make_optimizer
from frcnn_jax.training.validation import validate_step
from frcnn_jax.types import Batch, Proposals

Shape = jax.ShapeDtypeStruct


def check_groups(c: Mapping[str, Any]) -> None:
    """Calls the function of each group on a few abstract numbers.

    Raises the ValueError or TypeError of the function that owns the value.
    """
    for look in looks(c).values():
        look()


def unused(c: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that is set and that nothing reads.

    A function that `roi_box_loss` names takes the place of the box term of
    `losses.detector_loss`, whose `beta` then has no effect.
    """
    group, loss = c["detector_loss"], named.function(c, "roi_box_loss")
    if loss is None or "beta" not in group:
        return []
    name = c["roi_box_loss"]["name"]
    line = f"config.detector_loss.beta={group['beta']:.4g} is not used: "
    line += f"config.roi_box_loss.name={name!r} takes the place of that term"
    own = inspect.signature(loss).parameters.get("beta")
    if own is not None and isinstance(own.default, int | float):
        line += f" with config.roi_box_loss.beta={own.default:.4g}"
    return [line]


def looks(c: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """What `check_groups` calls, by the name of the group."""
    boxes, one = Shape((4, 4), np.float32), Shape((4,), np.float32)
    labels, mask = Shape((4,), np.int32), Shape((4,), bool)
    size, sizes = Shape((2,), np.int32), Shape((1, 2), np.int32)
    logits, deltas = Shape((4, 2), np.float32), Shape((4, 1, 4), np.float32)
    rpn = Shape((1, 4), np.float32), Shape((1, 4, 4), np.float32)
    drawn = Proposals(boxes, one, mask)  # pyright: ignore
    key = jax.eval_shape(jax.random.key, 0)
    anchors = (key, boxes, boxes, mask, mask, size)
    rois = (key, drawn, boxes, labels, mask, mask)
    traced: dict[str, tuple[Callable, tuple]] = {
        "rpn_targets": (targets.rpn_targets, anchors),
        "roi_targets": (targets.roi_targets, rois),
        "proposals.train": (_propose, (boxes, *rpn, sizes)),
        "proposals.eval": (_propose, (boxes, *rpn, sizes)),
        "rpn_loss": (losses.rpn_loss, (one, boxes, labels, boxes)),
        "detector_loss": (losses.detector_loss, (logits, deltas, labels, boxes)),
    }
    finish = boxes, mask, logits, deltas, size
    found: dict[str, Callable[[], Any]] = dict(
        model=lambda: models.build_detector(num_classes=1, **c["model"]),
        optimizer=lambda: make_optimizer(
            c["total_steps"], c["batch_size"], **c["optimizer"]
        ),
    )
    rows = roi_losses.ClassRows(logits, labels, mask)  # pyright: ignore
    found["roi_cls_loss"] = partial(_named_loss, c, "roi_cls_loss", rows)
    rows = roi_losses.BoxRows(boxes, boxes, boxes, boxes, mask)  # pyright: ignore
    found["roi_box_loss"] = partial(_named_loss, c, "roi_box_loss", rows)
    found["postprocess"] = lambda: _trace("postprocess", postprocess_of(c), {}, *finish)
    found["views"] = partial(views.of, c)
    for group, owner in algorithms.of(c).GROUPS.items():
        found[group] = partial(owner, **c[group])
    for group, (function, shapes) in traced.items():
        parent, _, part = group.partition(".")
        values = c[parent][part] if part else c[parent]
        found[group] = partial(_trace, group, function, values, *shapes)
    return found


def _named_loss(c: Mapping[str, Any], group: str, rows: Any) -> None:
    """Traces a loss that is found by name, but for weights of the classes."""
    values = dict(c.get(group) or {})
    weights = values.pop("weights", None) or ()
    several = ranges.several(ranges.NOT_NEGATIVE, least=0)
    ranges.check(f"config.{group}", weights=(weights, several))
    if loss := named.function({group: values}, group):
        _trace(group, partial(loss, normalizer=1), {}, rows)


def _propose(anchors: Any, logits: Any, deltas: Any, sizes: Any, **kwargs: Any) -> Any:
    out = RPNOutput({}, anchors[None], logits, deltas, (4,))
    return rpn_proposals(out, sizes, **kwargs)


def _trace(group: str, function: Any, values: Mapping[str, Any], *shapes: Any) -> None:
    """Traces one function; its error names the group as the configuration does."""
    try:
        jax.eval_shape(partial(function, **values), *shapes)
    except (ValueError, TypeError) as error:
        said, (parent, _, part) = str(error), group.partition(".")
        if part and said.startswith(f"{parent}."):
            said = f"{group}.{said.removeprefix(f'{parent}.')}"
        elif not said.startswith(parent):
            said = f"{group}: {said}"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"config.{said}") from None


def check_evaluation(c: Mapping[str, Any], model: Any, variables: Any) -> None:
    """Traces the program of the evaluation, for each canvas; nothing is computed."""
    b, g = c["eval_batch_size"], c["data"].get("max_boxes", 100)
    drawn = None
    if c["data"].get("proposals"):
        n = c["data"].get("max_proposals", 2000)
        drawn = Proposals(
            Shape((b, n, 4), np.float32), Shape((b, n), np.float32), Shape((b, n), bool)
        )  # pyright: ignore
    for canvas in canvases(c["data"]["canvas"]):
        batch: Any = Batch(
            image=Shape((b, *canvas, 3), np.uint8),  # pyright: ignore
            image_size=Shape((b, 2), np.int32),  # pyright: ignore
            original_size=Shape((b, 2), np.int32),  # pyright: ignore
            gt_boxes=Shape((b, g, 4), np.float32),  # pyright: ignore
            gt_classes=Shape((b, g), np.int32),  # pyright: ignore
            gt_valid=Shape((b, g), bool),  # pyright: ignore
            gt_ignore=Shape((b, g), bool),  # pyright: ignore
            index=Shape((b,), np.int32),  # pyright: ignore
            valid=Shape((b,), bool),  # pyright: ignore
            proposals=drawn,
        )
        step = partial(validate_step, model=model, config=c, axis_name=None)
        jax.eval_shape(step, variables, batch, jax.eval_shape(jax.random.key, 0))
