"""Shapes: a synthetic detection set, drawn on the fly from (seed, split, index).

Circles, squares, triangles and stars of any colour, rotation and size on a soft, noisy
background, with shadows, stripes and a little occlusion. There are no files: every
example is a pure function of its index, and the splits share no picture.
"""

import collections.abc
import dataclasses
import math
from typing import NamedTuple, overload

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from frcnn_jax import ranges
from frcnn_jax.data.source import Example, Source

CLASSES = ("circle", "square", "triangle", "star")
NUM_IMAGES = {"train": 2000, "val": 200, "test": 200}
MAX_OBJECTS = 6
MAX_IOU, MAX_COVERED = 0.2, 0.4  # between boxes; of the smaller box


Box = tuple[float, float, float, float]


class Shape(NamedTuple):
    """One shape to draw: its class, corners (x, y) in pixels, and their tight box."""

    label: int
    points: Float[np.ndarray, "n 2"]
    box: Box


def load(*, split: str, num_images: int = 0, size: int = 128, seed: int = 0) -> Source:
    """`num_images` pictures of `size` x `size`; 0: 2000 of train, 200 of val and test.

    Sides of shapes are from `size / 10` to `size / 2`. Each `seed` is another set.
    """
    if split not in NUM_IMAGES:
        raise ValueError(
            f"shapes has no split {split!r}: there are {', '.join(NUM_IMAGES)}"
        )
    ranges.check(
        "data",
        num_images=(num_images, ranges.COUNT_OR_NONE),
        size=(size, ranges.number(64, 65536, whole=True)),
        seed=(seed, ranges.COUNT_OR_NONE),
    )
    stream = (seed, list(NUM_IMAGES).index(split))
    indices = range(num_images or NUM_IMAGES[split])
    return Source(Shapes(indices, stream, size), CLASSES)


@dataclasses.dataclass(frozen=True)
class Shapes(collections.abc.Sequence):
    """The examples at `indices` of one split, drawn on demand."""

    indices: range
    stream: tuple[int, int]  # (seed, number of the split)
    size: int

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Shapes": ...
    def __getitem__(self, index: int | slice) -> "Example | Shapes":
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        position = self.indices[index]
        rng = np.random.default_rng((*self.stream, position))
        image = background(rng, self.size)
        shapes = layout(rng, self.size)
        for shape in shapes:
            draw(rng, image, shape)
        noise = rng.integers(0, 17, image.shape, np.uint8)
        image = cv2.subtract(cv2.add(image, noise), np.full_like(image, 8))
        return Example(
            image=image,
            image_id=position + 1,
            boxes=np.array([s.box for s in shapes], np.float32),
            classes=np.array([s.label for s in shapes], np.int32),
            ignore=np.zeros(len(shapes), bool),
            size=(self.size, self.size),
        )


def outline(rng: np.random.Generator, name: str) -> Float[np.ndarray, "n 2"]:
    """The corners (x, y) of a shape around 0, turned at random, its longer side 1."""
    corners = {"circle": 72, "square": 4, "triangle": 3, "star": 10}[name]
    turn = 0.0 if name == "circle" else rng.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == "star":
        points[1::2] *= 0.5
    return points / np.ptp(points, axis=0).max()


def box(points: Float[np.ndarray, "n 2"]) -> Box:
    """The tight box of an outline."""
    x, y = points.T.tolist()
    return min(x), min(y), max(x), max(y)


def layout(rng: np.random.Generator, size: int) -> list[Shape]:
    """Shapes in pixels, large ones first so that none is hidden."""
    placed: list[Shape] = []
    wanted = rng.integers(1, MAX_OBJECTS + 1)
    for _ in range(12 * wanted):
        c = int(rng.integers(len(CLASSES)))
        side = size * np.exp(rng.uniform(np.log(0.1), np.log(0.5)))
        points = outline(rng, CLASSES[c]) * side
        x1, y1, x2, y2 = box(points)
        points += rng.uniform((1 - x1, 1 - y1), (size - 1 - x2, size - 1 - y2))
        shape = Shape(c + 1, points, box(points))
        if all(_apart(shape.box, other.box) for other in placed):
            placed.append(shape)
        if len(placed) == wanted:
            break
    return sorted(placed, key=lambda s: -max(_sides(s.box)))


def _sides(a: Box) -> tuple[float, float]:
    return a[2] - a[0], a[3] - a[1]


def _apart(a: Box, b: Box) -> bool:
    """Whether two boxes overlap at most by `MAX_IOU` and `MAX_COVERED`."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0.0, min(a[3], b[3]) - max(a[1], b[1])
    )
    areas = math.prod(_sides(a)), math.prod(_sides(b))
    iou = common / (sum(areas) - common)
    return iou <= MAX_IOU and common <= MAX_COVERED * min(areas)


def background(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A soft, muted cloud of two or three neighbouring colours."""
    hue, value = rng.uniform(0, 180), rng.uniform(60, 215)
    cells = np.empty((5, 5, 3), np.float32)
    cells[..., 0] = (hue + rng.uniform(-14, 14, (5, 5))) % 180
    cells[..., 1] = rng.uniform(15, 70)
    cells[..., 2] = value + rng.uniform(-28, 28, (5, 5))
    rgb = cv2.cvtColor(cells.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return cv2.resize(rgb, (size, size), interpolation=cv2.INTER_CUBIC)


def draw(
    rng: np.random.Generator, image: UInt8[np.ndarray, "s s 3"], shape: Shape
) -> None:
    """Draws a shape into the image: soft shadow, lit or striped fill, dark rim."""
    size = image.shape[0]
    x1, y1, x2, y2 = shape.box
    left, top = max(0, int(x1) - 2), max(0, int(y1) - 2)
    right, bottom = min(size, int(x2) + 9), min(size, int(y2) + 9)
    view = image[top:bottom, left:right]
    # OpenCV counts from pixel centres, in sixteenths here.
    corners = np.rint((shape.points - (left + 0.5, top + 0.5)) * 16).astype(np.int32)
    mask = np.zeros(view.shape[:2], np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 4)  # pyright: ignore
    shadow = cv2.blur(cv2.warpAffine(mask, _SHADOW, mask.shape[::-1]), (5, 5))
    dark = view * (1 - shadow[..., None] * np.float32(0.4 / 255))
    colour = _colour(rng, view)
    light = _light(rng, view.shape[:2], max(x2 - x1, y2 - y1))
    fill = np.minimum(light[..., None] * colour.astype(np.float32), 255)
    cv2.polylines(fill, [corners], True, (colour * 0.55).tolist(), 2, cv2.LINE_AA, 4)
    view[:] = dark + mask[..., None] * np.float32(1 / 255) * (fill - dark)


_SHADOW = np.array([[1, 0, 3], [0, 1, 3]], np.float32)  # 3 pixels right and down


def _light(
    rng: np.random.Generator, shape: tuple[int, int], side: float
) -> Float[np.ndarray, "h w"]:
    """Brightness that falls off along a direction, in stripes on some large shapes."""
    angle = rng.uniform(0, 2 * math.pi)
    x = np.arange(shape[1], dtype=np.float32) - shape[1] / 2
    y = np.arange(shape[0], dtype=np.float32) - shape[0] / 2
    along = math.cos(angle) * x + math.sin(angle) * y[:, None]
    light = 1 + 0.3 / side * along
    if rng.random() < 0.3 and side > 24:
        stripes = np.sin(along * (2 * math.pi / max(6, side / 5))) > 0
        light *= np.where(stripes, np.float32(1), np.float32(0.78))
    return light


def _colour(
    rng: np.random.Generator, view: UInt8[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "3"]:
    """A vivid colour, the most different of four from what it is drawn over."""
    hsv = rng.integers((0, 130, 140), (180, 236, 256), (1, 4, 3)).astype(np.uint8)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].astype(np.float64)
    return rgb[np.abs(rgb - cv2.mean(view)[:3]).sum(-1).argmax()]
