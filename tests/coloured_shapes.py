"""Generated shapes that are easy to learn: their colours tell their classes.

Places, sizes, turns and backgrounds are those of `sources.shapes`; circles are red,
squares green, triangles blue and stars yellow, without shadow, stripes or noise. Those
whose longer side is below a fifth of the picture's are ignored, in training and in
evaluation.
"""

import collections.abc
import dataclasses

import cv2
import numpy as np

from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import shapes

COLOURS = ((230, 30, 30), (30, 200, 30), (30, 60, 240), (240, 230, 30))  # by class


def load(*, split: str, size: int, num_images: int = 0) -> Source:
    """The splits of `sources.shapes`."""
    source = shapes.load(split=split, size=size, num_images=num_images)
    assert isinstance(source.examples, shapes.Shapes)
    return dataclasses.replace(source, examples=Coloured(source.examples))


@dataclasses.dataclass(frozen=True)
class Coloured(collections.abc.Sequence):
    """The same layouts, drawn in flat colours."""

    shapes: shapes.Shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Coloured(self.shapes[index])
        position, size = self.shapes.indices[index], self.shapes.size
        rng = np.random.default_rng((*self.shapes.stream, position))
        image = shapes.background(rng, size)
        found = shapes.layout(rng, size)
        for shape in found:
            # OpenCV counts from pixel centres, in sixteenths here.
            corners = np.rint((shape.points - 0.5) * 16).astype(np.int32)
            colour = COLOURS[shape.label - 1]
            rim = tuple(x // 2 for x in colour)
            cv2.fillPoly(image, [corners], colour, cv2.LINE_AA, 4)
            cv2.polylines(image, [corners], True, rim, 1, cv2.LINE_AA, 4)
        boxes = np.array([s.box for s in found], np.float32)
        sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
        return Example(
            image=image,
            image_id=position + 1,
            boxes=boxes,
            classes=np.array([s.label for s in found], np.int32),
            ignore=sides < size / 5,
            size=(size, size),
        )
