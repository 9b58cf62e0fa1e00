"""Bilinear resizing as Pillow does it: smoothed where an image shrinks.

Pixel i of n takes the m pixels of the image around `c = (i + 1/2) m / n` with the
weights of a triangle, `max(0, 1 - |x + 1/2 - c| / s)`, `s = max(1, m / n)`, which are
made to sum to one. First across, then down; weights and sums are in fixed point and
each pass is rounded to bytes, so the result is Pillow's to the bit (`Image.resize` with
`BILINEAR`), but for the versions that go down first where that is cheaper: one level
may differ then. It is what Detectron2's transforms compute.
"""

import numpy as np
from jaxtyping import UInt8

BITS = 22  # of the fixed point


def smooth(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "i j 3"]:
    """The image at `size` (h, w); each pass is left out where nothing changes."""
    if image.shape[1] != size[1]:
        across = _pass(np.ascontiguousarray(np.swapaxes(image, 0, 1)), size[1])
        image = np.ascontiguousarray(np.swapaxes(across, 0, 1))
    return _pass(image, size[0]) if image.shape[0] != size[0] else image


def taps(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels `[wanted, k]` that each new pixel takes, and their weights.

    >>> where, weights = taps(4, 2)
    >>> where[0].tolist(), (weights[0] / 2**22).round(3).tolist()
    ([0, 1, 2], [0.429, 0.429, 0.143])
    """
    scale = length / wanted
    support = max(1.0, scale)
    centers = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centers + support + 0.5).astype(np.int64), length)
    where = first[:, None] + np.arange((end - first).max())
    share = 1 - np.abs((where - centers[:, None] + 0.5) * (1 / support))
    share = np.where(where < end[:, None], np.maximum(share, 0), 0)
    total = np.zeros((wanted, 1))
    for k in range(where.shape[1]):  # summed in Pillow's order
        total += share[:, k : k + 1]
    share /= total
    weights = np.floor(share * 2**BITS + 0.5).astype(np.int32)
    return np.minimum(where, length - 1), weights


def _pass(image: np.ndarray, wanted: int) -> np.ndarray:
    where, weights = taps(len(image), wanted)
    total = np.full((wanted, *image.shape[1:]), 1 << (BITS - 1), np.int32)
    for k in range(where.shape[1]):
        total += image[where[:, k]].astype(np.int32) * weights[:, k, None, None]
    return np.clip(total >> BITS, 0, 255).astype(np.uint8)
