"""Augmentation of a training image and its boxes, drawn from one generator.

`data.augment=dict(...)` are the keyword arguments of `augment`. Everything is drawn
from (seed, epoch, index), so that a resumed run sees the same pixels. Boxes follow the
whole pixels of crop and resized image exactly. Mirroring is `data.flip`.

Arguments of `augment`:

    rng: the generator of this visit.
    example: the annotation.
    original: its image, boxes and proposals as they are on disk.
    short_side: of the pipeline, as the two below.
    max_side: no longer than this,
    canvas: nor than the canvas.
    short_sides: one of these in place of `short_side`: multi-scale training.
    jitter: (low, high) factors on that scale; what does not fit the canvas then is
        cropped at random: large-scale jitter (Ghiasi et al. 2021, (0.1, 2)).
    min_visible: boxes of which a smaller share is left are ignored, neither object
        nor background; those of which nothing is left are dropped.
    brightness: the largest change, as a share of the range.
    contrast: the largest change of the factor on the distance from gray.
    saturation: the largest change of the factor on the saturation.
    hue: the largest turn, as a share of the circle.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from frcnn_jax import ranges
from frcnn_jax.data import proposal_files
from frcnn_jax.data.images import fit, resize
from frcnn_jax.data.source import Example, Size

Number = int | float


class Resized(NamedTuple):
    """An example as the network sees it, before it is padded (and what is cached)."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float32[np.ndarray, "n 4"]
    original_size: Size
    proposals: proposal_files.Scored | None = None  # of a file, best first


class Window(NamedTuple):
    """The pixels of the original that are taken, and the (h, w) they are resized to."""

    x: int
    y: int
    w: int
    h: int
    size: Size


def check(**values: Any) -> None:
    """ValueError names the first argument of `augment` that is out of its range."""
    level = ranges.SHARE
    rules = dict(
        short_sides=ranges.several(ranges.COUNT, least=0),
        jitter=ranges.either(
            ranges.several(ranges.POSITIVE, 2), ranges.several(ranges.POSITIVE, 0)
        ),
        min_visible=ranges.SHARE,
        **dict(brightness=level, contrast=level, saturation=level, hue=level),
    )
    known = {name: value for name, value in values.items() if name in rules}
    ranges.check("data.augment", **{k: (v, rules[k]) for k, v in known.items()})


def augment(
    rng: np.random.Generator,
    example: Example,
    original: Resized,
    *,
    short_side: int,
    max_side: int,
    canvas: Size,
    short_sides: Sequence[int] = (),
    jitter: Sequence[Number] = (),
    min_visible: Number = 0.1,
    brightness: Number = 0.0,
    contrast: Number = 0.0,
    saturation: Number = 0.0,
    hue: Number = 0.0,
) -> tuple[Example, Resized]:
    """An example and its image, still of original size, at random scale, crop, colours.

    The head of this module says what each argument is.
    """
    window = draw_window(
        rng,
        original.original_size,
        short_side=short_side,
        max_side=max_side,
        canvas=canvas,
        short_sides=short_sides,
        jitter=jitter,
    )
    crop = original.image[window.y :, window.x :][: window.h, : window.w]
    image = distort(
        rng,
        resize(crop, window.size),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
    boxes, visible = view(original.boxes, window)
    keep = visible > 0
    proposals = original.proposals
    if proposals is not None:
        seen, share = view(proposals.boxes, window)
        proposals = proposal_files.Scored(seen[share > 0], proposals.scores[share > 0])
    area = example.area
    example = example._replace(
        boxes=example.boxes[keep],
        classes=example.classes[keep],
        ignore=(example.ignore | (visible < min_visible))[keep],
        area=None if area is None else area[keep],
    )
    return example, Resized(image, boxes[keep], original.original_size, proposals)


def draw_window(
    rng: np.random.Generator,
    size: Size,
    *,
    short_side: int,
    max_side: int,
    canvas: Size,
    short_sides: Sequence[int] = (),
    jitter: Sequence[Number] = (),
) -> Window:
    """The window of an image of (h, w) and its new size; without jitter all of it."""
    h, w = size
    if short_sides:
        short_side = int(rng.choice(np.array(short_sides)))
    target = fit(size, short_side, max(short_side, max_side), canvas)
    if not jitter:
        return Window(0, 0, w, h, target)
    low, high = jitter
    factor = rng.uniform(low, high)
    scales = np.array(target) / size * factor
    taken = np.clip(np.floor(np.array(canvas) / scales), 1, size).astype(int)
    resized = np.clip(np.rint(taken * scales), 1, canvas).astype(int)
    y, x = rng.integers(0, np.array(size) - taken + 1)
    (th, tw), (rh, rw) = taken.tolist(), resized.tolist()
    return Window(x=int(x), y=int(y), w=tw, h=th, size=(rh, rw))


def view(
    boxes: Float32[np.ndarray, "n 4"], window: Window
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, "n"]]:
    """Boxes in the resized window, clipped to it, and what share of each is left."""
    h, w = window.size
    scale = np.array([w / window.w, h / window.h] * 2)
    moved = (boxes - np.array([window.x, window.y] * 2)) * scale
    clipped = np.clip(moved, 0, np.array([w, h, w, h]))
    area = (moved[:, 2:] - moved[:, :2]).prod(1)
    left = (clipped[:, 2:] - clipped[:, :2]).prod(1)
    share = left / np.where(area > 0, area, 1)
    return clipped.astype(np.float32), share.astype(np.float32)


def distort(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    brightness: Number = 0.0,
    contrast: Number = 0.0,
    saturation: Number = 0.0,
    hue: Number = 0.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Photometric distortion (SSD, section 2.2): each with probability one half."""
    on = rng.random(4) < 0.5
    amount = rng.uniform(-1, 1, 4) * on * (brightness, contrast, saturation, hue)
    levels = np.arange(256)
    if amount[:2].any():
        changed = (levels - 127.5) * (1 + amount[1]) + 127.5 + 255 * amount[0]
        image = cv2.LUT(image, _levels(changed))
    if amount[2:].any():
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        lut = [levels + 256 * amount[3], levels * (1 + amount[2]), levels]
        lut[0] %= 256
        hsv = cv2.LUT(hsv, _levels(np.stack(lut, axis=-1)[None]))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def _levels(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def mirror(resized: Resized) -> Resized:
    """Left and right exchanged: `x' = w - x`."""
    width = np.float32(resized.image.shape[1])
    found = resized.proposals
    return resized._replace(
        image=cv2.flip(resized.image, 1),
        boxes=_mirrored(resized.boxes, width),
        proposals=found and found._replace(boxes=_mirrored(found.boxes, width)),
    )


def _mirrored(boxes, width):
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)
