"""Selective search (Uijlings et al. 2013), OpenCV's: the proposals of Fast R-CNN."""

import ctypes

import cv2
import numpy as np
from jaxtyping import UInt8

from frcnn_jax.data.proposal_files import Scored

MODES = ("fast", "quality")
LONGEST = 10_000  # pixels of a side: OpenCV turns the image in squares of this side


def selective_search(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    mode: str = "fast",
    max_proposals: int = 2000,
    max_side: int = 0,
    seed: int = 0,
) -> Scored:
    """Boxes around similar regions, which are merged step by step; the best first.

    "fast" has about 2,000 boxes and seconds an image, "quality" five times as many of
    both. The order is that of the merging with a random factor (Sec 4.4 of the method),
    drawn from `seed`; scores fall evenly from 1. An image with a long side beyond
    `max_side` (0: none) is shrunk before. ValueError where a side is longer than
    `LONGEST` then: memory and time grow with its square, however narrow the image is.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {MODES}")
    h, w = image.shape[:2]
    scale = min(1.0, max_side / max(h, w)) if max_side else 1.0
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if max(image.shape[:2]) > LONGEST:
        raise ValueError(
            f"an image of {w}x{h} pixels, expected at most {LONGEST} on its longer "
            f"side: set max_side={LONGEST} or less"
        )
    ctypes.CDLL(None).srand(seed)  # OpenCV's random factor is C's rand()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image[..., ::-1].copy())
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    rows = np.asarray(search.process()[:max_proposals], np.float32)
    x, y, width, height = rows.T
    back = np.array([w / image.shape[1], h / image.shape[0]] * 2, np.float32)
    boxes = np.stack([x, y, x + width, y + height], axis=1) * back
    scores = np.linspace(1, 0, len(boxes), endpoint=False, dtype=np.float32)
    return Scored(boxes, scores)
