"""Slices: an image as a grid of overlapping tiles, to train on and to predict with.

A small object of a large photograph keeps its pixels in a tile, where the whole image
would be shrunk (Akyon et al. 2022, arXiv:2202.06934). Arguments of `cut_source`, which
are the group `data.tiles` of a configuration:

Args:
    size: (h, w) of a tile in pixels of the image on disk, or one number for both.
    overlap: the least share of its side that a tile has in common with the next one.
    min_visible: objects of which a smaller share of the area lies in a tile are dropped
        from it; the others are cut at its border.
    keep_empty: whether tiles without any object are examples, too.
    whole: whether the whole images are examples, too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from frcnn_jax import ranges
from frcnn_jax.data.source import Example, Size, Source, example_size

TileSize = int | Sequence[int]
SIDES = ranges.either(ranges.COUNT, ranges.several(ranges.COUNT, 2))
RULES = dict(
    size=SIDES,
    overlap=ranges.number(0, below=1),
    min_visible=ranges.SHARE,
    keep_empty=ranges.TRUTH,
    whole=ranges.TRUTH,
)


def check(**values) -> None:
    """ValueError names the first argument of `cut_source` that is out of its range."""
    known = {name: value for name, value in values.items() if name in RULES}
    ranges.check("data.tiles", **{k: (v, RULES[k]) for k, v in known.items()})


def both_sides(size: TileSize) -> Size:
    """(h, w) of a tile.

    >>> both_sides(400), both_sides((300, 400))
    ((400, 400), (300, 400))
    """
    h, w = (size, size) if isinstance(size, int) else size
    return int(h), int(w)


def windows(
    size: Size, tile: TileSize, *, overlap: float | int = 0.2
) -> Int[np.ndarray, "t 4"]:
    """The tiles of an image of (h, w): (x1, y1, x2, y2), row by row.

    Pixels. As few tiles as cover the image with at least `overlap`, at even distances,
    all of one size. Along a side shorter than the tile there is one, as long as it.

    >>> windows((100, 250), 100, overlap=0.2).tolist()
    [[0, 0, 100, 100], [75, 0, 175, 100], [150, 0, 250, 100]]
    """
    starts = []
    for length, side in zip(size, both_sides(tile), strict=True):
        step = max(1.0, side * (1 - overlap))
        count = 1 + max(0, int(np.ceil((length - side) / step - 1e-9)))
        starts.append(np.rint(np.linspace(0, max(0, length - side), count)).astype(int))
    y, x = (grid.ravel() for grid in np.meshgrid(*starts, indexing="ij"))
    h, w = (min(n, side) for n, side in zip(size, both_sides(tile), strict=True))
    return np.stack([x, y, x + w, y + h], axis=1)


def cut(
    boxes: Float32[np.ndarray, "n 4"], window: Sequence[int]
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, "n"]]:
    """Boxes in the pixels of a tile, cut at its border, and what share is left of each.

    The share is `area inside / area`, 0 for a box without area.

    >>> boxes, share = cut(np.float32([[80, 0, 120, 10]]), (100, 0, 200, 100))
    >>> boxes.tolist(), share.tolist()
    ([[0.0, 0.0, 20.0, 10.0]], [0.5])
    """
    x1, y1, x2, y2 = window
    moved = boxes - np.array([x1, y1, x1, y1], np.float32)
    inside = np.clip(moved, 0, np.array([x2 - x1, y2 - y1] * 2, np.float32))
    area = (moved[:, 2:] - moved[:, :2]).prod(1)
    left = (inside[:, 2:] - inside[:, :2]).prod(1)
    return inside, left / np.where(area > 0, area, 1)


def tile_of(example: Example, window: Sequence[int], min_visible: float) -> Example:
    """One tile of an example, with the objects that lie in it.

    `window` is (x1, y1, x2, y2) in pixels of the image; boxes are in pixels of the
    tile, areas are multiplied by the share that is left. Objects of which less than
    `min_visible` or nothing is left are dropped.
    """
    boxes, share = cut(example.boxes, window)
    keep = (share > 0) & (share >= min_visible)
    keep &= (boxes[:, 2:] > boxes[:, :2]).all(1)
    area = example.area
    x1, y1, x2, y2 = map(int, window)
    return example._replace(
        image_id=f"{example.image_id}_{x1}_{y1}",
        boxes=boxes[keep],
        classes=example.classes[keep],
        ignore=example.ignore[keep],
        area=None if area is None else (area * share)[keep],
        window=(x1, y1, x2, y2),
    )


def cut_source(
    source: Source,
    *,
    size: TileSize,
    overlap: float | int = 0.2,
    min_visible: float | int = 0.3,
    keep_empty: bool = False,
    whole: bool = False,
) -> Source:
    """A source whose examples are the tiles of another one's.

    The head of this module says what each argument is. An image without a size in its
    annotation is opened. Tiles of an image are repeated as the image is. Raises
    ValueError for an argument out of its range.
    """
    check(
        size=size,
        overlap=overlap,
        min_visible=min_visible,
        keep_empty=keep_empty,
        whole=whole,
    )
    examples, parents = [], []
    for i, example in enumerate(source.examples):
        found = [example] if whole else []
        for window in windows(example_size(example), size, overlap=overlap):
            tile = tile_of(example, window.tolist(), min_visible)
            if keep_empty or (~tile.ignore).any():
                found.append(tile)
        examples += found
        parents += [i] * len(found)
    repeats = source.repeats
    return dataclasses.replace(
        source,
        examples=examples,
        repeats=None if repeats is None else np.asarray(repeats)[parents],
    )
