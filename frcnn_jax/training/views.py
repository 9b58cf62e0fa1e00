"""More accuracy in prediction: tiles, mirrored and resized images, merged by NMS.

The group `views` of a configuration is the keyword arguments of `check`; evaluation,
`Detector` and `predict.py` take it, as `--set=views.tile=400 --set=views.flip=True`. A
view is an image, or a tile of it, at one size; all of one size run through one compiled
program. What was found in the views of an image is merged class by class, once.

Args:
    tile: (h, w) of a tile in pixels of the image, or one number for both; 0 for none.
    overlap: the least share of its side that a tile has in common with the next one.
    whole: whether the whole image is a view, beside its tiles.
    flip: whether every view is seen mirrored, too.
    short_sides: in place of `data.short_side`, one or more; longest side and canvas
        change in proportion.
    merge: "nms" by IoU, or "smaller" by the intersection over the smaller of two boxes,
        which removes the parts of an object that a tile has cut.
    iou: the threshold of the merging.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from frcnn_jax import ranges
from frcnn_jax.data import images, tiles
from frcnn_jax.data.source import Example, Source, example_size
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import nms
from frcnn_jax.types import Batch, Detections, Proposals


class Views(NamedTuple):
    """The group `views`, checked."""

    tile: tiles.TileSize = 0
    overlap: float | int = 0.2
    whole: bool = True
    flip: bool = False
    short_sides: tuple[int, ...] = ()
    merge: str = "nms"
    iou: float | int = 0.5

    @property
    def several(self) -> bool:
        """Whether there is more to see than the image as it is."""
        return bool(self.tile or self.flip or self.short_sides)


def check(**values: Any) -> Views:
    """The views that a group asks for; see the head of this module.

    Raises TypeError for an unknown argument, ValueError for one out of its range.
    """
    if unknown := sorted(set(values) - set(Views._fields)):
        raise TypeError(
            f"config.views: unexpected {unknown}; expected some of "
            f"{list(Views._fields)}"
        )
    found = Views(**values)
    ranges.check(
        "config.views",
        tile=(found.tile, ranges.either(tiles.SIDES, ranges.one_of(0))),
        overlap=(found.overlap, tiles.RULES["overlap"]),
        whole=(found.whole, ranges.TRUTH),
        flip=(found.flip, ranges.TRUTH),
        short_sides=(found.short_sides, ranges.several(ranges.COUNT, least=0)),
        merge=(found.merge, ranges.one_of("nms", "smaller")),
        iou=(found.iou, ranges.OVERLAP),
    )
    if not (found.whole or found.tile):
        raise ValueError("config.views.whole=False needs config.views.tile")
    return found


def of(config: Mapping[str, Any]) -> Views:
    """The views of a configuration; older ones have none."""
    return check(**(config.get("views") or {}))


# ------------------------------------------------------------------------- what to see


def windows(size: images.Size, views: Views) -> Int[np.ndarray, "v 4"]:
    """The parts of an image of (h, w) that are views, (x1, y1, x2, y2) in pixels."""
    h, w = size
    found = [np.array([[0, 0, w, h]])] if views.whole or not views.tile else []
    if views.tile:
        grid = tiles.windows(size, views.tile, overlap=views.overlap)
        if not (found and len(grid) == 1):  # the one tile is the whole image
            found.append(grid)
    return np.concatenate(found)


def sides(data: Mapping[str, Any], views: Views) -> list[dict[str, Any]]:
    """`short_side`, `max_side` and `canvas` of each size; those of `data`, or others.

    >>> data = dict(short_side=300, max_side=400, canvas=(304, 400))
    >>> sides(data, Views(short_sides=(600,)))
    [{'short_side': 600, 'max_side': 800, 'canvas': (608, 800)}]
    """
    names = ("short_side", "max_side", "canvas")
    if not views.short_sides:
        return [{name: data[name] for name in names}]
    found = []
    for side in views.short_sides:
        factor = side / data["short_side"]
        canvas = tuple(
            tuple(32 * -(-round(n * factor) // 32) for n in one)
            for one in images.canvases(data["canvas"])
        )
        canvas = canvas[0] if len(canvas) == 1 else canvas
        longest = round(data["max_side"] * factor)
        found.append(dict(short_side=side, max_side=longest, canvas=canvas))
    return found


def expand(source: Source, views: Views) -> tuple[Source, Int[np.ndarray, "v 3"]]:
    """A source of all views, without objects, and where each lies.

    The rows of the array are (number of the image, x, y), the corner in pixels.
    """
    none = np.zeros(0, np.int32)
    nothing: dict[str, Any] = dict(boxes=np.zeros((0, 4), np.float32), classes=none)
    nothing |= dict(ignore=none.astype(bool), area=None)
    examples: list[Example] = []
    places = []
    for i, example in enumerate(source.examples):
        h, w = example_size(example)
        for x1, y1, x2, y2 in windows((h, w), views).tolist():
            whole = (x2 - x1, y2 - y1) == (w, h)
            window = None if whole else (x1, y1, x2, y2)
            number = len(examples)
            examples.append(example._replace(image_id=number, window=window, **nothing))
            places.append((i, x1, y1))
    grown = dataclasses.replace(source, examples=examples, repeats=None)
    return grown, np.array(places, int).reshape(-1, 3)


def mirrored(predict: Callable) -> Callable:
    """`predict(variables, batch)` of the mirrored images, with boxes as in the images.

    Inside jit. An image is mirrored inside its `image_size`; its padding stays where it
    is.
    """

    def run(variables: PyTree, batch: Batch) -> Detections:
        width = jnp.asarray(batch.image_size)[:, 1]
        column = jnp.arange(batch.image.shape[2])[None]
        inside = column < width[:, None]
        column = jnp.where(inside, width[:, None] - 1 - column, column)
        image = jnp.take_along_axis(
            jnp.asarray(batch.image), column[:, None, :, None], axis=2
        )
        flip = jax.vmap(box_ops.flip)
        given = batch.proposals
        if given is not None:
            boxes = flip(given.boxes, width)
            boxes = jnp.where(jnp.asarray(given.valid)[..., None], boxes, 0)
            given = Proposals(boxes, given.scores, given.valid)  # pyright: ignore
        found = predict(variables, batch._replace(image=image, proposals=given))
        boxes = jnp.where(found.valid[..., None], flip(found.boxes, width), 0)
        return found._replace(boxes=boxes)

    return run


# ------------------------------------------------------------------------ what is left


def merge(found: Detections, *, views: Views, count: int) -> Detections:
    """Of one image's detections in all views the best `count` after class-wise NMS.

    Numpy arrays by falling score, equal scores by index; rows that are not `valid` are
    zero. Rows of `found` that are not `valid` change nothing.
    """
    index = kept(found, views=views, count=count)
    room = [(0, count - len(index))]
    return Detections(
        *(
            np.pad(x[index], room + [(0, 0)] * (x.ndim - 1))
            for x in map(np.asarray, found)
        )
    )


def kept(found: Detections, *, views: Views, count: int) -> Int[np.ndarray, "m"]:
    """The positions that `merge` keeps, best first.

    The NMS runs on 512, 1024, ... boxes, so that few programs are compiled.
    """
    n = len(found.valid)
    room = max(512, 1 << max(0, n - 1).bit_length())
    rows = (
        np.pad(x, [(0, room - n)] + [(0, 0)] * (np.ndim(x) - 1))
        for x in map(np.asarray, found)
    )
    index, valid = jax.device_get(_merging(views.merge, float(views.iou), count)(*rows))
    return index[valid]


@functools.cache
def _merging(how: str, iou: float, count: int) -> Callable:
    @jax.jit
    def run(
        boxes: Float[Array, "n 4"],
        scores: Float[Array, " n"],
        classes: Int[Array, " n"],
        valid: Array,
    ):
        if how == "smaller":
            which = functools.partial(nms.smaller_nms_indices, threshold=iou)
        else:
            which = functools.partial(nms.nms_indices, iou_threshold=iou)
        return which(boxes, scores, valid, classes=classes, max_output=count)

    return run


def merge_rows(
    parts: Sequence[list[dict]],
    places: Int[np.ndarray, "v 3"],
    ids: Sequence[int],
    *,
    views: Views,
    count: int,
) -> list[dict]:
    """COCO-format detections of images from those of their views, in order.

    The `image_id` of a row in `parts` is the number of its view, a row of `places`
    (image, x, y) in pixels; `ids` are those of the images.
    """
    of_image: dict[int, list[dict]] = {}
    for rows in parts:
        for row in rows:
            i, x, y = places[row["image_id"]].tolist()
            bx, by, w, h = row["bbox"]
            box = [bx + x, by + y, w, h]
            of_image.setdefault(i, []).append(dict(row, bbox=box))
    merged = []
    for i in sorted(of_image):
        rows = of_image[i]
        boxes = np.array([row["bbox"] for row in rows], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        everything = Detections(
            boxes,
            np.array([row["score"] for row in rows], np.float32),
            np.array([row["category_id"] for row in rows], np.int32),
            np.ones(len(rows), bool),
        )
        index = kept(everything, views=views, count=count).tolist()
        merged += [dict(rows[k], image_id=ids[i]) for k in index]
    return merged
