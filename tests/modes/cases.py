"""Every public function of the pure layer, one line each, with inputs for one image.

One deep thing: a table.

`case(function, *inputs, **more)` calls `function(*inputs, **more)`. An input made by
`box`, `flag`, ... is drawn anew for every image; anything else is a constant. The
letters name axes: those of `EMPTY` are tried with length 0 too. A mode that a function
does not support stands in `errors`: the mode's name and the text of the error.

    case(boxes.iou, box("n"), box("g"))
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from frcnn_jax import cascade, detections, losses, proposals, roi_losses, targets
from frcnn_jax.ops import (
    anchors,
    boxes,
    convolution,
    direct_conv,
    extents,
    maps,
    matching,
    modes,
    nms,
    positions,
    roi_align,
    roi_pool,
)
from frcnn_jax.types import Proposals

SIZES = dict(n=7, g=3, a=12, r=5, p=6, k=4, h=8, w=10, c=3, t=70)
EMPTY = "ngarp"


class Input(NamedTuple):
    """How an array, or a tree of them, is drawn; and its axes."""

    draw: Callable[[np.random.Generator, dict[str, int]], Any]
    axes: str


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A public function, what it is called with, and what it cannot."""

    function: Callable
    inputs: tuple[tuple, dict[str, Any]]
    errors: dict[str, str]
    tolerance: float

    def __call__(self, arrays: Any) -> Any:
        """The function's answer; `arrays` as `draw` gives them."""
        args, kwargs = self.inputs
        drawn, named = arrays
        places = iter(drawn)
        args = [next(places) if isinstance(x, Input) else x for x in args]
        return self.function(*args, **{**kwargs, **named})

    def draw(self, seed: int = 0, **sizes: int) -> Any:
        """Inputs of one image, numpy but for keys."""
        rng = np.random.default_rng(seed)
        args, kwargs = self.inputs
        sizes = SIZES | sizes
        drawn = [x.draw(rng, sizes) for x in args if isinstance(x, Input)]
        named = {
            name: x.draw(rng, sizes)
            for name, x in kwargs.items()
            if isinstance(x, Input)
        }
        return drawn, named

    @property
    def axes(self) -> set[str]:
        """The letters that can be empty."""
        args, kwargs = self.inputs
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Input)]
        return {letter for x in inputs for letter in x.axes if letter in EMPTY}


def case(
    function: Callable,
    *inputs: Any,
    errors: dict[str, str] | None = None,
    tolerance: float = 1e-6,
    **more: Any,
) -> Case:
    if not any(isinstance(x, Input) for x in (*inputs, *more.values())):
        constant = partial(function, *inputs, **more)
        # Something to be mapped over.
        inputs, more = (real(""),), {}
        called = function
        function = lambda _: constant()  # noqa: E731
        function.__wrapped__ = called  # type: ignore[attr-defined]
    return Case(function, (inputs, more), errors or {}, tolerance)


# -- Inputs ----------------------------------------------------------------------------


def _shape(axes, sizes):
    return tuple(int(x) if x.isdigit() else sizes[x] for x in axes)


def real(axes: str, *, low: float = -2.0, high: float = 2.0) -> Input:
    """Numbers, far from each other."""

    def draw(rng, sizes):
        return np.asarray(rng.uniform(low, high, _shape(axes, sizes)), np.float32)

    return Input(draw, axes)


def box(axes: str) -> Input:
    """Boxes of 5 to 30 pixels within 60 x 60."""

    def draw(rng, sizes):
        corner = rng.uniform(0, 30, (*_shape(axes, sizes), 2))
        side = rng.uniform(5, 30, corner.shape)
        return np.concatenate([corner, corner + side], -1).astype(np.float32)

    return Input(draw, axes)


def flag(axes: str, *, share: float = 0.8) -> Input:
    """True with a probability of `share`."""

    def draw(rng, sizes):
        return rng.uniform(size=_shape(axes, sizes)) < share

    return Input(draw, axes)


def whole(axes: str, low: int, high: int) -> Input:
    """int32 from `low` to `high`, both included."""

    def draw(rng, sizes):
        return rng.integers(low, high + 1, _shape(axes, sizes), np.int32)

    return Input(draw, axes)


def key() -> Input:
    """A PRNG key."""
    return Input(lambda rng, _: jax.random.key(rng.integers(1000)), "")


def size() -> Input:
    """The image's (h, w)."""
    return Input(lambda rng, _: rng.integers(45, 60, 2).astype(np.int32), "")


def props(axes: str) -> Input:
    """Proposals."""

    def draw(rng, sizes):
        parts = box(axes), real(axes, low=0.0, high=1.0), flag(axes)
        return Proposals(*(part.draw(rng, sizes) for part in parts))

    return Input(draw, axes)


def candidates() -> Input:
    """What a post-processing chooses from."""

    def draw(rng, sizes):
        parts = box("5"), real("5"), whole("5", 1, 3), flag("5")
        return proposals.Candidates(*(part.draw(rng, sizes) for part in parts))

    return Input(draw, "")


def rows_of_boxes() -> Input:
    """What a box loss by name takes."""

    def draw(rng, sizes):
        parts = box("r"), box("r"), real("r4"), real("r4"), flag("r")
        return roi_losses.BoxRows(*(part.draw(rng, sizes) for part in parts))

    return Input(draw, "r")


def rows_of_classes() -> Input:
    """What a class loss by name takes."""

    def draw(rng, sizes):
        parts = real("rk"), whole("r", 0, 3), flag("r")
        return roi_losses.ClassRows(*(part.draw(rng, sizes) for part in parts))

    return Input(draw, "r")


def keys(count: int) -> Input:
    """PRNG keys."""
    return Input(
        lambda rng, _: jax.random.split(jax.random.key(rng.integers(99)), count), ""
    )


def levels(**sides: int) -> Input:
    """Square maps of 3 channels, `{stride: map}` of s8=7 and the like."""

    def draw(rng, sizes):
        return {int(s[1:]): real(f"{n}{n}3").draw(rng, sizes) for s, n in sides.items()}

    return Input(draw, "")


# -- Functions -------------------------------------------------------------------------

# JAX's own convolution, mapped over kernels too, reshapes a sharded axis.
EXPLICIT_CONV = dict.fromkeys(
    ("explicit_mesh", "explicit_mesh_of_one_argument"), "This reshape is not supported"
)
# `convolution.conv` takes Winograd's for float32 alone.
OF_FLOAT32 = dict(strict_promotion_of_other_floats="no available implicit dtype")
MATCH = dict(fg_iou=0.5, bg_iou=0.3, force_best=True)

CASES = [
    # boxes
    case(boxes.area, box("n")),
    case(boxes.elementwise_iou, box("n"), box("n")),
    case(boxes.elementwise_giou, box("n"), box("n")),
    case(boxes.elementwise_diou, box("n"), box("n")),
    case(boxes.elementwise_ciou, box("n"), box("n")),
    case(boxes.iou, box("n"), box("g")),
    case(boxes.ioa, box("n"), box("g")),
    case(boxes.giou, box("n"), box("g")),
    case(boxes.diou, box("n"), box("g")),
    case(boxes.ciou, box("n"), box("g")),
    case(boxes.to_center, box("n")),
    case(boxes.from_center, real("n"), real("n"), real("n"), real("n")),
    case(boxes.encode, box("n"), box("n")),
    case(boxes.decode, real("n4"), box("n")),
    case(boxes.clip, box("n"), size()),
    case(boxes.centered_inside, box("n"), size()),
    case(boxes.flip, box("n"), real("", low=40.0, high=60.0)),
    case(boxes.rescale, box("n"), real("2", low=0.5)),
    case(boxes.from_xywh, box("n")),
    case(boxes.to_xywh, box("n")),
    case(boxes.from_yxyx_normalized, box("n"), size()),
    case(boxes.to_yxyx_normalized, box("n"), size()),
    case(boxes.from_inclusive, box("n"), origin=1),
    case(boxes.to_inclusive, box("n"), origin=1),
    case(boxes.as_float32, whole("n", 0, 9)),
    # anchors
    case(anchors.cell_anchors, 16, (0.5, 1.0)),
    case(anchors.size_first_cell_anchors, (8, 16), (0.5, 1.0)),
    case(anchors.rounded_cell_anchors, 16, (0.5, 1.0)),
    case(anchors.legacy_cell_anchors, scales=(1, 2)),
    case(anchors.grid, box("k"), (2, 3), 16),
    case(anchors.pyramid, [(2, 3), (1, 2)], (16, 32), (32, 64)),
    case(anchors.places, [(2, 3), (1, 2)], 3),
    # extents
    case(extents.extent_of, size(), 32),
    case(extents.cells, size(), 4),
    case(extents.mask, whole("g2", 1, 8), (8, 10)),
    case(extents.inside, real("ghwc"), whole("g2", 1, 8), -1.0),
    case(extents.mean_inside, real("ghwc"), whole("g2", 1, 8)),
    # modes
    case(modes.carry, real("n"), inputs=real("g")),
    case(modes.take, real("k4"), whole("r", 0, 3)),
    case(modes.take_rows, real("k4"), whole("r", 0, 3)),
    case(modes.reshape, real("468"), (2, 2, 2, 3, -1, 1)),
    case(modes.reshape, real("46223"), (24, -1)),
    case(modes.one_image, "f", boxes=(1.0, "")),
    # matching
    case(matching.match, box("n"), box("g"), flag("g"), flag("g", share=0.3), **MATCH),
    case(matching.match, box("n"), box("g"), flag("g"), valid=flag("n"), **MATCH),
    case(matching.at_least_one_slot, box("g"), flag("g"), None),
    case(matching.sample, key(), whole("n", -1, 2), num_samples=4, fg_fraction=0.5),
    case(matching.priorities, key(), 4, whole("4", 0, 99)),
    case(
        matching.sample,
        *(key(), whole("n", -1, 2)),
        **dict(num_samples=4, fg_fraction=0.5, places=whole("n", 0, 99)),
    ),
    case(matching.cover, real("gp", low=0.1, high=0.9), flag("g")),
    # nms
    case(nms.nms, box("n"), real("n"), flag("n"), iou_threshold=0.3),
    case(nms.classwise_nms, box("n"), real("n"), whole("n", 1, 2), iou_threshold=0.3),
    case(nms.nms_indices, box("n"), real("n"), iou_threshold=0.3, max_output=4),
    # Two tiles of a CPU, one of another platform.
    case(nms.nms_indices, box("t"), real("t"), iou_threshold=0.3, max_output=4),
    case(nms.smaller_nms_indices, box("n"), real("n"), threshold=0.3, max_output=4),
    case(nms.soft_nms_indices, box("n"), real("n", low=0.1), flag("n"), max_output=4),
    case(
        nms.soft_nms_linear_indices,
        *(box("n"), real("n", low=0.1), flag("n")),
        classes=whole("n", 1, 2),
        max_output=4,
    ),
    case(nms.soft_nms, box("n"), real("n", low=0.1), flag("n")),
    case(nms.soft_nms_linear, box("n"), real("n", low=0.1), flag("n")),
    # targets
    case(
        targets.rpn_targets,
        *(key(), box("a"), box("g"), flag("g"), flag("g", share=0.2), size()),
        **dict(valid=flag("a"), places=whole("a", 0, 99)),
        num_samples=8,
        straddle=9,
    ),
    case(
        targets.roi_targets,
        *(key(), props("p"), box("g"), whole("g", 1, 3), flag("g")),
        gt_ignore=flag("g", share=0.2),
        num_samples=6,
    ),
    # losses
    case(losses.smooth_l1, real("n"), beta=0.5),
    case(losses.sigmoid_focal_loss, real("n"), whole("n", 0, 1)),
    case(losses.giou_loss, box("n"), box("n")),
    case(losses.diou_loss, box("n"), box("n")),
    case(losses.ciou_loss, box("n"), box("n")),
    case(losses.rpn_loss, real("a"), real("a4"), whole("a", -1, 1), real("a4")),
    case(losses.rpn_loss, real("a2"), real("a4"), whole("a", -1, 1), real("a4")),
    case(
        losses.detector_loss,
        *(real("rk"), real("r34"), whole("r", -1, 3), real("r4")),
    ),
    # cascade
    case(cascade.refine, box("r"), flag("r"), real("r14"), size()),
    case(
        cascade.stage_targets,
        *(box("r"), flag("r"), box("g"), whole("g", 1, 3), flag("g")),
        gt_ignore=flag("g", share=0.2),
        fg_iou=0.3,
    ),
    case(cascade.mean_logits, real("3rk")),
    # losses of the second stage
    case(
        roi_losses.box_rows,
        *(box("r"), real("r34"), whole("r", -1, 3), real("r4")),
    ),
    case(roi_losses.class_rows, real("rk"), whole("r", -1, 3)),
    case(roi_losses.mean, real("r"), flag("r"), 8),
    *(
        case(loss, rows_of_boxes(), normalizer=8)
        for loss in (
            *(roi_losses.smooth_l1, roi_losses.l1, roi_losses.iou),
            *(roi_losses.giou, roi_losses.diou, roi_losses.ciou),
        )
    ),
    case(roi_losses.cross_entropy, rows_of_classes(), normalizer=8),
    case(
        roi_losses.focal, rows_of_classes(), normalizer=8, weights=(1.0, 2.0, 0.5, 0.0)
    ),
    # proposals
    case(
        proposals.select_proposals,
        *(box("a"), real("a"), real("a4", low=-0.3, high=0.3), size(), flag("a")),
        pre_nms=8,
        post_nms=5,
    ),
    case(
        proposals.postprocess,
        *(box("r"), flag("r"), real("rk"), real("r34"), size()),
        max_detections=6,
    ),
    case(
        proposals.class_candidates,
        *(box("r"), flag("r"), real("rk"), real("r34"), size()),
    ),
    case(
        proposals.chosen,
        *(candidates(), whole("k", 0, 4), real("k"), flag("k")),
    ),
    *(
        case(
            function,
            *(box("r"), flag("r"), real("rk"), real("r34"), size()),
            max_detections=6,
        )
        for function in (detections.nms, detections.soft_nms)
    ),
    case(
        detections.soft_nms_linear,
        *(box("r"), flag("r"), real("rk"), real("r34"), size()),
        max_detections=6,
    ),
    # pooling
    case(roi_align.roi_align, real("hwc"), box("r"), stride=6, output_size=2),
    case(
        roi_align.roi_align,
        *(real("hwc"), box("r")),
        **dict(stride=6, output_size=(2, 3), sampling_ratio=0, extent=(7, 5)),
    ),
    case(
        roi_align.roi_align,
        *(real("hwc"), box("r")),
        **dict(stride=6, output_size=2, extent=whole("2", 3, 8)),
    ),
    *(
        case(
            roi_align.multilevel_roi_align,
            *(levels(s8=7, s16=4), box("r")),
            **dict(output_size=2, canonical_size=60.0, sampling_ratio=samples),
        )
        for samples in (2, 0)
    ),
    case(roi_align.roi_levels, box("r"), (4, 8)),
    case(roi_align.rois_beyond, box("r"), stride=4, output_size=2, max_samples=2),
    case(roi_pool.roi_pool, real("hwc"), box("r"), stride=6, output_size=2),
    # maps
    case(maps.relu, real("ghwc")),
    case(maps.max_pool, real("ghwc"), window=2, stride=2),
    case(maps.local_response_norm, real("ghwc")),
    case(maps.dropout, keys(3), real("3c"), rate=0.5),
    case(maps.branch_factors, keys(3), count=4, rate=0.5, each=2),
    case(positions.cubic_weights, 5, 8, whole("", 3, 8)),
    case(positions.absolute, real("45c"), (8, 6), whole("2", 2, 6)),
    case(positions.relative, real("9c"), 8, whole("", 3, 8)),
    # convolutions
    case(
        direct_conv.direct_conv,
        *(real("ghwc"), real("33ck")),
        errors=dict(EXPLICIT_CONV),
        padding=1,
    ),
    case(convolution.conv, real("ghwc"), real("11ck"), real("k"), tolerance=1e-5),
    case(
        convolution.conv,
        *(real("ghwc"), real("33ck"), real("k")),
        errors=dict(EXPLICIT_CONV),
        padding=1,
    ),
    case(convolution.depthwise_conv, real("ghwc"), real("331c"), tolerance=1e-5),
    case(convolution.depthwise_conv, real("ghwc"), real("771c"), tolerance=1e-5),
    *(
        case(
            convolution.convolve,
            *(real("2hwc"), real("33ck"), real("k")),
            **dict(kind=kind, errors=errors, tolerance=1e-5),
        )
        for kind, errors in (("winograd", OF_FLOAT32), ("nine products", {}))
    ),
]

# Not for users: formulations, and the rules by which operations are made.
FORMULATIONS = {
    "extents.stride_of",  # of whole numbers
    "roi_cells.pair",
    "roi_cells.within",
    "soft_nms.pick",
    "winograd.conv3x3",
    "winograd.kernel_gradient",
    "winograd.matrices",
    "winograd.pays",
}
RULES = "primitive"
