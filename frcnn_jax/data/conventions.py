"""What the numbers of a box mean in each file format: the one place that knows.

| convention | the four numbers | used by |
| --- | --- | --- |
| `xyxy` | x1, y1, x2, y2, continuous pixels | this package |
| `xywh` | x1, y1, width, height, continuous pixels | COCO |
| `inclusive` | first and last pixel, counted from 0 | many tables, LabelMe exports |
| `voc` | first and last pixel, counted from 1 | PASCAL VOC |
| `xyxy_normalized` | x1, y1, x2, y2 over the image's width and height | Open Images |
| `yxyx_normalized` | y1, x1, y2, x2 over the image's height and width | TFDS |
| `center_normalized` | x and y of the middle, width, height, over the image's | YOLO |

Continuous means that a picture w pixels wide reaches from 0 to w.
"""

import numpy as np
from jaxtyping import Float

from frcnn_jax.data.source import Size

CONVENTIONS = (
    *("xyxy", "xywh", "inclusive", "voc"),
    *("xyxy_normalized", "yxyx_normalized", "center_normalized"),
)
# What is subtracted from (first x, first y, last x, last y).
_PIXELS = dict(inclusive=(0, 0, -1, -1), voc=(1, 1, 0, 0))


def to_xyxy(
    boxes: Float[np.ndarray, "n 4"], convention: str, size: Size | None = None
) -> Float[np.ndarray, "n 4"]:
    """Boxes of a file format in continuous pixels; `size` (h, w) for normalised ones.

    >>> to_xyxy(np.array([[1.0, 1.0, 640.0, 480.0]]), "voc").tolist()
    [[0.0, 0.0, 640.0, 480.0]]
    """
    if convention in _PIXELS:
        return boxes - np.array(_PIXELS[convention], boxes.dtype)
    boxes = boxes * _scale(convention, size).astype(boxes.dtype)
    if convention == "yxyx_normalized":
        return boxes[:, [1, 0, 3, 2]]
    if convention in ("xywh", "center_normalized"):
        first, sides = boxes[:, :2], boxes[:, 2:]
        first = first - sides / 2 if convention == "center_normalized" else first
        return np.concatenate([first, first + sides], axis=1)
    return boxes


def from_xyxy(
    boxes: Float[np.ndarray, "n 4"], convention: str, size: Size | None = None
) -> Float[np.ndarray, "n 4"]:
    """Boxes in continuous pixels as a file format writes them; undoes `to_xyxy`.

    >>> from_xyxy(np.array([[2.0, 1.0, 6.0, 3.0]]), "xywh").tolist()
    [[2.0, 1.0, 4.0, 2.0]]
    """
    if convention in _PIXELS:
        return boxes + np.array(_PIXELS[convention], boxes.dtype)
    if convention == "yxyx_normalized":
        boxes = boxes[:, [1, 0, 3, 2]]
    elif convention in ("xywh", "center_normalized"):
        first, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        first = first + sides / 2 if convention == "center_normalized" else first
        boxes = np.concatenate([first, sides], axis=1)
    return boxes / _scale(convention, size).astype(boxes.dtype)


def _scale(convention: str, size: Size | None) -> Float[np.ndarray, "4"]:
    """What normalised numbers are multiplied by; ones for pixels."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r}: expected one of {CONVENTIONS}")
    if not convention.endswith("_normalized"):
        return np.ones(4)
    if size is None:
        raise ValueError(f"convention={convention!r} needs the size of the image")
    h, w = size
    return np.array([h, w, h, w] if convention[0] == "y" else [w, h, w, h], np.float64)
