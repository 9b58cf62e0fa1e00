"""How well an anchor set suits the boxes of a data set, and one that suits them better.

An anchor set is a list of levels `(stride, cells)`: the boxes `[k, 4]` at a level's
first cell, which all others repeat every `stride` pixels. n boxes, k anchors a cell.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SIDES = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)  # square root of areas
Levels = Sequence[tuple[int, np.ndarray]]
FACTORS = tuple(2.0 ** (s * k / 8) for k in (1, 2, 3, 4) for s in (1, -1))


def best_iou(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> Float[np.ndarray, "n"]:
    """Each box's highest IoU with any anchor that is centred inside its image.

    This is exact although the grid is not built: of anchors of one shape, the one whose
    centre is nearest along x and along y overlaps most.
    """
    best = np.zeros(len(boxes))
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # [n, 1, 2], as (x, y)
    area = (high - low).prod(-1)
    for stride, cells in anchors:
        middle = (cells[:, :2] + cells[:, 2:]) / 2  # [k, 2]
        half = (cells[:, 2:] - cells[:, :2]) / 2
        last = np.floor((image_sizes[:, None, ::-1] - middle) / stride)
        steps = np.round(((low + high) / 2 - middle) / stride)
        centre = middle + stride * np.clip(steps, 0, np.maximum(last, 0))  # [n, k, 2]
        common = np.minimum(high, centre + half) - np.maximum(low, centre - half)
        common = np.maximum(common, 0).prod(-1)
        iou = common / (area + 4 * half.prod(-1) - common)
        best = np.maximum(best, iou.max(1))
    return best


def coverage(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> dict[str, Any]:
    """The share of boxes with an anchor of IoU 0.5 and 0.7, by size and in all."""
    best = best_iou(boxes, image_sizes, anchors)
    bins = np.digitize(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)), SIDES[1:])
    shares = {
        name: _shares(best[bins == i])
        for i, name in enumerate(names(SIDES))
        if np.any(bins == i)
    }
    return dict(all=_shares(best), by_side=shares)


def suggest(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> dict[str, Any]:
    """Anchor sizes and aspect ratios that follow the boxes, as many as there are now.

    Ratios are the present ones or k-means of the boxes' own; so are the sizes if there
    is one level. With several levels all present sizes are multiplied by one factor, up
    to half an octave, because anchors that are small for the stride of their level have
    too coarse a lattice. Only combinations that reach at least as many boxes at IoU 0.7
    as the present one count. Of those within 0.01 of the highest mean IoU the first is
    suggested, with the factor nearest to 1; it may be the present one.
    `shapes` are the (w, h) of k-means on IoU, which need not be a grid.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    shapes = [cells[:, 2:] - cells[:, :2] for _, cells in anchors]
    sizes = [np.unique(np.sqrt(s.prod(1)).round(1)).tolist() for s in shapes]
    ratios = np.unique((shapes[0][:, 1] / shapes[0][:, 0]).round(2)).tolist()
    own_ratios = _means(sides[:, 1] / sides[:, 0], len(ratios))
    if len(anchors) > 1:
        own = [[[f * v for v in level] for level in sizes] for f in FACTORS]
    else:
        own = [[_means(np.sqrt(sides.prod(1)), len(sizes[0]))]]
        own = own if len(own[0][0]) == len(sizes[0]) else []
    grid = [(s, r) for s in (sizes, *own) for r in (ratios, own_ratios)]
    middles = [(cells[0, :2] + cells[0, 2:]) / 2 for _, cells in anchors]
    made = [
        [
            (stride, _cells(size, r, middle))
            for (stride, _), size, middle in zip(anchors, s, middles, strict=True)
        ]
        for s, r in grid
    ]
    reached = [best_iou(boxes, image_sizes, levels) for levels in made]
    counts = np.array([np.sum(iou >= 0.7) for iou in reached])
    values = np.array([iou.mean() for iou in reached])
    values[counts < counts[0]] = -1.0
    best = int(np.argmax(values >= values.max() - 0.01))
    clusters, iou = kmeans(sides, min(9, len(shapes) * len(shapes[0])))
    return dict(
        sizes=[[round(v, 1) for v in level] for level in grid[best][0]],
        aspect_ratios=[round(v, 2) for v in grid[best][1]],
        coverage=coverage(boxes, image_sizes, made[best])["all"],
        changes=best > 0,
        shapes=clusters.round(1).tolist(),
        mean_iou=iou,
    )


def kmeans(
    shapes: Float[np.ndarray, "n 2"], k: int, *, steps: int = 50
) -> tuple[Float[np.ndarray, "k 2"], float]:
    """k-means of (w, h) with the distance 1 - IoU of boxes that share their centre.

    The start is spread evenly over the boxes by area. Returns the shapes by area and
    the mean IoU of the boxes with the shape nearest to each. Shapes that come out the
    same are one: there may be fewer than k.
    """
    shapes = np.asarray(shapes, np.float64)
    order = np.argsort(shapes.prod(1), kind="stable")
    at = ((np.arange(k) + 0.5) * len(shapes) / k).astype(int)
    means = np.unique(shapes[order[at]], axis=0)
    for _ in range(steps):
        nearest = _shape_iou(shapes, means).argmax(1)
        moved = [np.median(shapes[nearest == i], axis=0) for i in np.unique(nearest)]
        moved = np.unique(moved, axis=0)
        if moved.shape == means.shape and np.allclose(moved, means):
            break
        means = moved
    means = means[np.argsort(means.prod(1), kind="stable")]
    return means, float(_shape_iou(shapes, means).max(1).mean())


def names(edges: Sequence[float]) -> list[str]:
    """What the bins between ascending `edges` are called."""
    return [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]


# ------------------------------------------------------------------------------ parts


def _shares(best: Float[np.ndarray, "n"]) -> dict[str, float | int]:
    return {
        "boxes": len(best),
        "0.5": float(np.mean(best >= 0.5)),
        "0.7": float(np.mean(best >= 0.7)),
    }


def _shape_iou(
    shapes: Float[np.ndarray, "n 2"], means: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "n k"]:
    common = np.minimum(shapes[:, None], means[None]).prod(-1)
    return common / (shapes.prod(-1)[:, None] + means.prod(-1) - common)


def _means(values: Float[np.ndarray, "n"], k: int) -> list[float]:
    """k-means of positive numbers by ratio, ascending; fewer where they agree."""
    logs = np.log(np.asarray(values, np.float64))
    means = np.unique(np.quantile(logs, (np.arange(k) + 0.5) / k))
    for _ in range(50):
        nearest = np.abs(logs[:, None] - means).argmin(1)
        means = np.array([logs[nearest == i].mean() for i in np.unique(nearest)])
    return np.exp(np.unique(means)).tolist()


def _cells(
    sizes: Sequence[float], ratios: Sequence[float], middle: np.ndarray
) -> Float[np.ndarray, "k 4"]:
    half = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in sizes]
    return np.concatenate([middle - half, middle + half], axis=1)
