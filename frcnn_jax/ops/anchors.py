"""Anchors, section 3.1.1: k reference boxes at every cell of a feature map.

    cells    [k, 4]  the boxes of one cell, relative to the cell's place in the image
    stride           input pixels per feature cell
    sizes            square root of an anchor's area, in pixels
    aspect_ratios    height / width

A cell's boxes are small numpy constants, and the grid is computed from them, so that a
compiled program holds no large constant.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from frcnn_jax.ops.boxes import as_float32


def cell_anchors(
    sizes: float | int | Sequence[float | int],
    aspect_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "k 4"]:
    """The k boxes with area size^2 and h / w = ratio, centred on 0.

    For each ratio, for each size: torchvision's order.

    >>> cell_anchors(16, (1.0, 4.0))
    array([[ -8.,  -8.,   8.,   8.],
           [ -4., -16.,   4.,  16.]], dtype=float32)
    """
    ratios = np.sqrt(np.asarray(aspect_ratios, np.float64))[:, None]
    w = (np.ravel(sizes) / ratios).ravel()
    h = (np.ravel(sizes) * ratios).ravel()
    return np.stack([-w, -h, w, h], axis=-1).astype(np.float32) / 2


def size_first_cell_anchors(
    sizes: float | int | Sequence[float | int],
    aspect_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "k 4"]:
    """`cell_anchors` for each size, for each ratio: Detectron2's order.

    With one size a level, as in FPN, the two agree.

    >>> size_first_cell_anchors((8, 16), (1.0, 4.0))[:, 2:]
    array([[ 4.,  4.],
           [ 2.,  8.],
           [ 8.,  8.],
           [ 4., 16.]], dtype=float32)
    """
    cells = [cell_anchors(size, aspect_ratios) for size in np.ravel(sizes).tolist()]
    return np.concatenate(cells)


def rounded_cell_anchors(
    sizes: float | int | Sequence[float | int],
    aspect_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "k 4"]:
    """`cell_anchors` with corners rounded to whole pixels, half to even: torchvision's.

    >>> rounded_cell_anchors(32, (0.5,))
    array([[-23., -11.,  23.,  11.]], dtype=float32)
    """
    return np.round(cell_anchors(sizes, aspect_ratios))


def legacy_cell_anchors(
    *,
    base_size: int = 16,
    aspect_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
    scales: Sequence[float | int] = (8, 16, 32),
) -> Float[np.ndarray, "k 4"]:
    """The boxes of py-faster-rcnn's weights, for each ratio, for each scale.

    Width and height at scale 1 are rounded to whole pixels, then multiplied; the centre
    is the middle of the cell, (base_size / 2, base_size / 2). The original's corners
    are first and last pixel: its (-84, -40, 99, 55), or (-83, -39, 100, 56) where
    pixels count from one, is (-84, -40, 100, 56) here. Use with `offset=0`.
    """
    ratios = np.asarray(aspect_ratios, np.float64)
    w = np.round(np.sqrt(base_size**2 / ratios))
    h = np.round(w * ratios)
    w, h = (np.outer(side, scales).ravel() for side in (w, h))
    return (base_size / 2 + np.stack([-w, -h, w, h], -1) / 2).astype(np.float32)


def grid(
    cells: Float[np.ndarray, "k 4"] | Float[Array, "k 4"],
    feature_size: tuple[int, int],
    stride: Any,
    *,
    offset: float | int = 0.0,
) -> Float[Array, "a 4"]:
    """The boxes of all h x w cells, a = h * w * k, ordered (y, x, anchor) as NHWC is.

    Cell (y, x) places its boxes at ((x + offset) * stride, (y + offset) * stride):
    offset 0 is the corner of the cell, which torchvision, Detectron2 and py-faster-rcnn
    use, 0.5 the middle of its receptive field. `stride` may be a pair (y, x), whole
    numbers, traced or not.

    >>> grid(cell_anchors(2, (1.0,)), (1, 2), 16)
    Array([[-1., -1.,  1.,  1.],
           [15., -1., 17.,  1.]], dtype=float32)
    """
    (h, w) = feature_size
    pair = stride if isinstance(stride, (tuple, list)) else (stride, stride)
    stride_y, stride_x = (jnp.asarray(s).astype(jnp.float32) for s in pair)
    boxes = as_float32(cells)[None, None]
    y = (jnp.arange(h, dtype=jnp.float32) + offset) * stride_y
    x = (jnp.arange(w, dtype=jnp.float32) + offset) * stride_x
    y, x = y.astype(boxes.dtype)[:, None, None], x.astype(boxes.dtype)[None, :, None]

    def column(i):  # of all anchors: a TPU would pad rows of four to 128
        at = jnp.broadcast_to((y if i % 2 else x) + boxes[..., i], (h, w, len(cells)))
        return at.reshape(-1)

    return jnp.stack([column(i) for i in range(4)], axis=-1)


def pyramid(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[Any],
    sizes: Sequence[float | int | Sequence[float | int]],
    aspect_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
    *,
    offset: float | int = 0.0,
    cells: Callable[..., np.ndarray] = cell_anchors,
) -> Float[Array, "a 4"]:
    """The grids of several levels, one after the other (FPN, section 4.1).

    Level l has `cells(sizes[l], aspect_ratios)` at every cell: `sizes[l]` is a number
    or several. Raises ValueError when the three sequences differ in length.

    >>> pyramid([(2, 2), (1, 1)], (16, 32), (32, 64)).shape
    (15, 4)
    """
    if not len(feature_sizes) == len(strides) == len(sizes):
        raise ValueError(
            "feature_sizes, strides and sizes must have one entry a level, found "
            f"{len(feature_sizes)}, {len(strides)} and {len(sizes)}: give each level "
            "its stride and its anchor size(s), such as sizes=(32, (64, 128))."
        )
    levels = zip(feature_sizes, strides, sizes, strict=True)
    return jnp.concatenate(
        [grid(cells(s, aspect_ratios), hw, d, offset=offset) for hw, d, s in levels]
    )


def places(feature_sizes: Sequence[tuple[int, ...]], k: int) -> UInt32[Array, " a"]:
    """A number for each anchor of a pyramid, from (level, y, x, anchor) alone.

    The same place has the same number on maps of any size, where its index differs: so
    random draws need not depend on the size of the canvas. The numbers are distinct
    while the square of a map's side times k times levels is below 2^32.

    >>> places([(2, 2)], 1).tolist(), places([(2, 3)], 1).tolist()
    ([0, 1, 2, 3], [0, 1, 4, 2, 3, 5])
    """
    levels = []
    for level, (h, w) in enumerate(feature_sizes):
        y = jnp.arange(h, dtype=jnp.uint32)[:, None]
        x = jnp.arange(w, dtype=jnp.uint32)[None]
        # Szudzik's pairing: a square of side n holds the numbers below n^2.
        cell = jnp.where(x > y, x * x + y, y * y + y + x)
        anchor = jnp.arange(k, dtype=jnp.uint32)[None]
        number = (cell.reshape((-1, 1)) * k + anchor) * len(feature_sizes) + level
        levels.append(number.reshape(-1))
    return jnp.concatenate(levels)
