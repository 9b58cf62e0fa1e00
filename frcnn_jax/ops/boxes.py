"""Boxes: overlaps, the parameters of eq. (2), and conversions between conventions.

    box          (x1, y1, x2, y2), absolute pixels, continuous: w = x2 - x1 (no +1), a
                 pixel (i, j) covers [j, j + 1] x [i, i + 1]
    image_size   (h, w) in pixels
    a [n, 4], b [g, 4]   the two sides of a pairwise overlap [n, g]
    xa, ya, wa, ha       centre and size of an anchor, in the paper's notation

Everything is computed in float32 at least, whatever comes in. Boxes without area, the
zeros of padded rows among them, have finite values and finite gradients everywhere.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num

from frcnn_jax.ops.primitive import wide
from frcnn_jax.types import Array

# The smallest side (px) and area (px^2) that count as more than nothing.
_SIDE, _AREA = 1e-6, 1e-12

ImageSize = Num[Array, "2"] | tuple[int | Array, int | Array]


def as_float32(x: Num[Array, "..."]) -> Float[Array, "..."]:
    """`x` as floats of at least 32 bits: float64 stays, all else becomes float32."""
    x = jnp.asarray(x)
    dtype = wide(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def _split(boxes) -> tuple[Array, Array, Array, Array]:
    boxes = as_float32(boxes)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _join(*columns) -> Array:
    return jnp.concatenate([c[..., None] for c in columns], axis=-1)


def _hw(image_size, dtype) -> tuple[Array, Array]:
    h, w = (jnp.asarray(side, dtype) for side in image_size)
    return h, w


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 (with zero gradient) where whole is nothing."""
    some = whole > _AREA
    return jnp.where(some, part / jnp.where(some, whole, 1.0), 0.0)


# -- Overlap ---------------------------------------------------------------------------


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area `w * h` in square pixels; 0 for padded (zero) and for inverted boxes.

    >>> area(jnp.array([[0.0, 0.0, 2.0, 3.0], [4.0, 4.0, 4.0, 4.0]])).tolist()
    [6.0, 0.0]
    """
    x1, y1, x2, y2 = _split(boxes)
    return jnp.maximum(x2 - x1, 0.0) * jnp.maximum(y2 - y1, 0.0)


def _intersection(a, b):
    ax1, ay1, ax2, ay2 = _split(a)
    bx1, by1, bx2, by2 = _split(b)
    w = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    h = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    return jnp.maximum(w, 0.0) * jnp.maximum(h, 0.0)


def _hull(a, b):
    """Width and height of the smallest box around both."""
    ax1, ay1, ax2, ay2 = _split(a)
    bx1, by1, bx2, by2 = _split(b)
    w = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    h = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
    return w, h


def elementwise_iou(
    a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]
) -> Float[Array, "*#n"]:
    """IoU `|a & b| / |a | b|` of boxes paired by broadcasting; 0 for two empty ones."""
    both = _intersection(a, b)
    return _ratio(both, area(a) + area(b) - both)


def elementwise_giou(
    a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]
) -> Float[Array, "*#n"]:
    """GIoU `IoU - (|hull| - |a | b|) / |hull|` of boxes paired by broadcasting.

    arXiv:1902.09630, algorithm 1. In [-1, 1]; 0 when the hull has no area.
    """
    both = _intersection(a, b)
    union = area(a) + area(b) - both
    w, h = _hull(a, b)
    return _ratio(both, union) - _ratio(w * h - union, w * h)


def elementwise_diou(
    a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]
) -> Float[Array, "*#n"]:
    """DIoU `IoU - d^2 / c^2` of boxes paired by broadcasting.

    arXiv:1911.08287, eq. (7): d is the distance of the centres, c the diagonal of the
    hull. In [-1, 1]; equal to the IoU when the hull is a point.
    """
    w, h = _hull(a, b)
    ax, ay, _, _ = to_center(a)
    bx, by, _, _ = to_center(b)
    return elementwise_iou(a, b) - _ratio((ax - bx) ** 2 + (ay - by) ** 2, w**2 + h**2)


def elementwise_ciou(
    a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]
) -> Float[Array, "*#n"]:
    """CIoU `DIoU - alpha v`, which also compares aspect ratios, paired by broadcasting.

    arXiv:1911.08287, eq. (8) to (11): `v = 4/pi^2 (atan(w_a/h_a) - atan(w_b/h_b))^2`,
    `alpha = v / (1 - IoU + v)`, a constant for the gradient.
    """

    def angle(boxes):
        _, _, w, h = to_center(boxes)
        return jnp.arctan2(jnp.maximum(w, _SIDE), jnp.maximum(h, _SIDE))

    v = 4 / math.pi**2 * (angle(a) - angle(b)) ** 2
    alpha = jax.lax.stop_gradient(_ratio(v, 1 - elementwise_iou(a, b) + v))
    return elementwise_diou(a, b) - alpha * v


def iou(a: Float[Array, "n 4"], b: Float[Array, "g 4"]) -> Float[Array, "n g"]:
    """Intersection over union of every a with every b; 0 where both are empty.

    >>> iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]]))
    Array([[0.33333334]], dtype=float32)
    """
    return elementwise_iou(a[:, None], b[None])


def ioa(a: Float[Array, "n 4"], b: Float[Array, "g 4"]) -> Float[Array, "n g"]:
    """Intersection over the area of a, the test for ignore regions; 0 where a is empty.

    >>> ioa(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 9.0, 9.0]]))
    Array([[0.5]], dtype=float32)
    """
    return _ratio(_intersection(a[:, None], b[None]), area(a)[:, None])


def giou(a: Float[Array, "n 4"], b: Float[Array, "g 4"]) -> Float[Array, "n g"]:
    """Generalised IoU of every a with every b: see `elementwise_giou`.

    >>> giou(jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[2.0, 0.0, 3.0, 1.0]]))
    Array([[-0.33333334]], dtype=float32)
    """
    return elementwise_giou(a[:, None], b[None])


def diou(a: Float[Array, "n 4"], b: Float[Array, "g 4"]) -> Float[Array, "n g"]:
    """Distance IoU of every a with every b: see `elementwise_diou`."""
    return elementwise_diou(a[:, None], b[None])


def ciou(a: Float[Array, "n 4"], b: Float[Array, "g 4"]) -> Float[Array, "n g"]:
    """Complete IoU of every a with every b: see `elementwise_ciou`."""
    return elementwise_ciou(a[:, None], b[None])


# -- Parameters ------------------------------------------------------------------------


def to_center(
    boxes: Float[Array, "*n 4"],
) -> tuple[
    Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]
]:
    """Centre and size `(x, y, w, h)`, four arrays in pixels."""
    x1, y1, x2, y2 = _split(boxes)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def from_center(
    x: Float[Array, "*n"],
    y: Float[Array, "*n"],
    w: Float[Array, "*n"],
    h: Float[Array, "*n"],
) -> Float[Array, "*n 4"]:
    """Boxes from centre and size, the inverse of `to_center`."""
    return _join(x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def encode(
    boxes: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    *,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*n 4"]:
    """t = ((x - xa)/wa, (y - ya)/ha, log(w/wa), log(h/ha)) / stds, eq. (2).

    The regression targets of boxes seen from anchors, row by row. Sides below 1e-6 px
    count as 1e-6, so a padded (zero) box or anchor gives large but finite numbers with
    finite gradients: mask them.

    >>> encode(jnp.array([[0.0, 0, 8, 8]]), jnp.array([[0.0, 0, 4, 8]])).round(3)
    Array([[0.5  , 0.   , 0.693, 0.   ]], dtype=float32)
    """
    x, y, w, h = to_center(boxes)
    xa, ya, wa, ha = to_center(anchors)
    w, h, wa, ha = (jnp.maximum(side, _SIDE) for side in (w, h, wa, ha))
    t = (x - xa) / wa, (y - ya) / ha, jnp.log(w / wa), jnp.log(h / ha)
    return _join(*(ti / std for ti, std in zip(t, stds, strict=True)))


def decode(
    deltas: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    *,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    max_log_ratio: float = math.log(1000 / 16),
) -> Float[Array, "*n 4"]:
    """Boxes x = tx wa + xa, w = wa exp(tw), ... of eq. (2); the inverse of `encode`.

    tw and th (after multiplying by stds) are bounded from above by `max_log_ratio`
    before exp, so that no early prediction overflows. Padded (zero) anchors give zero
    boxes.

    >>> decode(jnp.array([[0.5, 0, jnp.log(2.0), 0]]), jnp.array([[0.0, 0, 4, 8]]))
    Array([[0., 0., 8., 8.]], dtype=float32)
    """
    tx, ty, tw, th = (ti * std for ti, std in zip(_split(deltas), stds, strict=True))
    xa, ya, wa, ha = to_center(anchors)
    return from_center(
        tx * wa + xa,
        ty * ha + ya,
        wa * jnp.exp(jnp.minimum(tw, max_log_ratio)),
        ha * jnp.exp(jnp.minimum(th, max_log_ratio)),
    )


# -- Geometry --------------------------------------------------------------------------


def clip(boxes: Float[Array, "*n 4"], image_size: ImageSize) -> Float[Array, "*n 4"]:
    """Boxes cut off at the borders of the image: x in [0, w], y in [0, h].

    A box wholly outside becomes one without area on the border; zeros stay zeros.
    """
    x1, y1, x2, y2 = _split(boxes)
    h, w = _hw(image_size, x1.dtype)
    return _join(
        jnp.clip(x1, 0.0, w),
        jnp.clip(y1, 0.0, h),
        jnp.clip(x2, 0.0, w),
        jnp.clip(y2, 0.0, h),
    )


def centered_inside(
    boxes: Float[Array, "*n 4"], image_size: ImageSize
) -> Bool[Array, "*n"]:
    """True where the box's centre lies in [0, w) x [0, h): not in the padding.

    A hundredth of a pixel is given to rounding, so that all anchors of one cell agree.
    """
    x, y, _, _ = to_center(boxes)
    h, w = _hw(image_size, x.dtype)
    e = 0.01
    return (x > -e) & (y > -e) & (x < w - e) & (y < h - e)


def flip(boxes: Float[Array, "*n 4"], width: Num[Array, ""] | float | int):
    """Boxes of the horizontally mirrored image: (w - x2, y1, w - x1, y2).

    Padded (zero) rows become boxes without area on the right border.
    """
    x1, y1, x2, y2 = _split(boxes)
    width = jnp.asarray(width, x1.dtype)
    return _join(width - x2, y1, width - x1, y2)


def rescale(
    boxes: Float[Array, "*n 4"],
    scale: Num[Array, ""] | Num[Array, "2"] | float | int | tuple[float, float],
) -> Float[Array, "*n 4"]:
    """Boxes of an image resized by `scale`, one number or (sy, sx): new size over old.

    >>> rescale(jnp.array([1.0, 1.0, 2.0, 3.0]), (10.0, 2.0)).tolist()
    [2.0, 10.0, 4.0, 30.0]
    """
    x1, y1, x2, y2 = _split(boxes)
    sy, sx = jnp.broadcast_to(jnp.asarray(scale, x1.dtype), (2,))
    return _join(x1 * sx, y1 * sy, x2 * sx, y2 * sy)


# -- Other conventions -----------------------------------------------------------------


def from_xywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """From COCO's (x1, y1, w, h), top left corner and size in pixels."""
    x, y, w, h = _split(boxes)
    return _join(x, y, x + w, y + h)


def to_xywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """To COCO's (x1, y1, w, h), top left corner and size in pixels."""
    x1, y1, x2, y2 = _split(boxes)
    return _join(x1, y1, x2 - x1, y2 - y1)


def from_yxyx_normalized(
    boxes: Float[Array, "*n 4"], image_size: ImageSize
) -> Float[Array, "*n 4"]:
    """From TensorFlow's (y1, x1, y2, x2) in fractions of the image's height and width.

    >>> from_yxyx_normalized(jnp.array([0.0, 0.5, 1.0, 1.0]), (10, 20)).tolist()
    [10.0, 0.0, 20.0, 10.0]
    """
    y1, x1, y2, x2 = _split(boxes)
    h, w = _hw(image_size, x1.dtype)
    return _join(x1 * w, y1 * h, x2 * w, y2 * h)


def to_yxyx_normalized(
    boxes: Float[Array, "*n 4"], image_size: ImageSize
) -> Float[Array, "*n 4"]:
    """To TensorFlow's (y1, x1, y2, x2) in fractions of the image's height and width."""
    x1, y1, x2, y2 = _split(boxes)
    h, w = _hw(image_size, x1.dtype)
    return _join(y1 / h, x1 / w, y2 / h, x2 / w)


def from_inclusive(
    boxes: Float[Array, "*n 4"], *, origin: int = 0
) -> Float[Array, "*n 4"]:
    """From first and last pixel, both included (`w = x2 - x1 + 1`), to continuous.

    `origin` is the number of the image's first pixel: 0 for py-faster-rcnn's boxes in
    memory, 1 for the annotation files of PASCAL VOC.

    >>> from_inclusive(jnp.array([1.0, 1.0, 500.0, 375.0]), origin=1).tolist()
    [0.0, 0.0, 500.0, 375.0]
    """
    x1, y1, x2, y2 = _split(boxes)
    return _join(x1 - origin, y1 - origin, x2 - origin + 1.0, y2 - origin + 1.0)


def to_inclusive(
    boxes: Float[Array, "*n 4"], *, origin: int = 0
) -> Float[Array, "*n 4"]:
    """To first and last pixel, both included, the inverse of `from_inclusive`."""
    x1, y1, x2, y2 = _split(boxes)
    return _join(x1 + origin, y1 + origin, x2 + origin - 1.0, y2 + origin - 1.0)
