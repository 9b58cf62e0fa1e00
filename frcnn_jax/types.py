"""The vocabulary: one name, one meaning, and the tuples that carry padded data.

| name | meaning |
| --- | --- |
| box | `(x1, y1, x2, y2)`, float32, absolute pixels of the resized, padded network input, continuous (`w = x2 - x1`, no +1) |
| image_size | `(h, w)` in pixels before padding, per image |
| stride, features | input pixels per feature cell; feature maps are `{stride: [b, h, w, c]}`, NHWC |
| anchor | reference box; levels concatenated small stride first; inside a level ordered (y, x, anchor) as the NHWC conv output is |
| objectness_logits | `[a]` (sigmoid) or `[a, 2]` (softmax, as in the paper; index 1 is "object"), before the activation |
| box_deltas | `(tx, ty, tw, th)` of eq. (2), divided by `stds`; tw, th are bounded before exp (log(1000/16)) |
| proposal | decoded, clipped, NMS-ed anchor or external box: `Proposals(boxes, scores, valid)`, fixed count |
| RoI | a proposal or appended ground truth sampled for the second stage |
| gt_boxes, gt_classes, gt_valid, gt_ignore | padded to `max_boxes`; classes 1..C; `gt_valid` is the only truth about padding; ignore = crowd or difficult |
| iou | `[n, g]`: rows are anchors or RoIs, columns ground truth |
| labels | -1 ignored, 0 background, >= 1 object (RPN: 1; detector: class) |
| class_logits | `[r, C + 1]`, index 0 background |
| class_deltas | `[r, C, 4]`, row `c - 1` belongs to class c; `[r, 1, 4]` when class-agnostic |
| detection | `Detections(boxes, scores, classes, valid)` in network pixels; mapping back to the original image is explicit |
| key | PRNG key, first argument of every function that draws |
| axis letters | b images, a anchors, g ground-truth slots, r RoIs, n any of those, k classes, h w c map |

Every function of `ops`, `targets` and `proposals` takes ONE image (use `jax.vmap`); the
tuples below stand for one image there and carry a leading batch axis elsewhere.
"""  # noqa: E501

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:
    Array = Any
else:  # the data pipeline makes numpy arrays, the step jax arrays
    Array = jax.Array | np.ndarray

Features = dict[int, Float[jax.Array, "b _ _ _"]]  # maps by stride


class Proposals(NamedTuple):
    """Proposals by falling score; boxes and scores are zero where not valid."""

    boxes: Float[Array, "*b r 4"]
    scores: Float[Array, "*b r"]
    valid: Bool[Array, "*b r"]


class Batch(NamedTuple):
    """A padded batch as the data pipeline makes it (numpy) and the step takes it (jax).

    `index` is the example's position in its data set, the seed of its random draws;
    `valid` is False for the examples that fill up the last batch of an evaluation.
    `proposals` are those of a file (Fast R-CNN), None where the network makes its own.
    """

    image: UInt8[Array, "*b h w 3"]  # RGB, zeros outside image_size
    image_size: Int[Array, "*b 2"]  # (h, w) after resizing, before padding
    original_size: Int[Array, "*b 2"]  # (h, w) of the image on disk
    gt_boxes: Float[Array, "*b g 4"]
    gt_classes: Int[Array, "*b g"]
    gt_valid: Bool[Array, "*b g"]
    gt_ignore: Bool[Array, "*b g"]
    index: Int[Array, "*b"]
    valid: Bool[Array, "*b"]
    proposals: Proposals | None = None


class Detections(NamedTuple):
    """Detections by falling score; all fields are zero where not valid."""

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    classes: Int[Array, "*b n"]
    valid: Bool[Array, "*b n"]


class RPNTargets(NamedTuple):
    """The RPN's target at each anchor: labels -1, 0, 1; deltas 0 unless 1."""

    labels: Int[Array, "*b a"]
    deltas: Float[Array, "*b a 4"]


class RoITargets(NamedTuple):
    """Sampled RoIs and the detector's targets: labels -1 (unused), 0, 1..C."""

    boxes: Float[Array, "*b r 4"]
    labels: Int[Array, "*b r"]
    deltas: Float[Array, "*b r 4"]
