"""NMS and RoIAlign: ONNX has an operator for each, and their primitives become these.

b images · n candidates · m kept · k classes · r RoIs of an image · h w c map
"""

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from frcnn_jax.models.build import pool_rois
from frcnn_jax.ops import roi_align as align_ops
from frcnn_jax.to_onnx.shapes import materialised, out
from frcnn_jax.to_onnx.tensors import Graph, Tensor, element_type
from frcnn_jax.types import Features

# NMS -------------------------------------------------------------------------------


def _nms(graph: Graph, eqn: Any, inputs: list[Tensor]):
    """`ops.nms`: the first m kept by falling score, equal scores by index.

    A box has the score of its own class and none of the others, so that classes do not
    meet. NonMaxSuppression takes equal scores by index, too, and says in a number of
    rows that depends on the data which boxes it keeps; they become marks on all n, of
    which TopK takes the first m.
    """
    boxes, scores, classes, valid = inputs
    b, n = scores.shape
    threshold, m = eqn.params["threshold"], eqn.params["max_output"]
    low, high = classes.bounds()
    if high is None or (low is not None and low < 0):
        raise NotImplementedError("NMS of classes without a bound")
    kinds = np.arange(high + 1)[None, :, None]
    least = np.array(-np.inf, np.float32)
    rows = [graph.reshape(graph.full(t), (b, 1, n)) for t in (classes, valid, scores)]
    own = graph.add("And", graph.add("Equal", rows[0], kinds), rows[1])
    by_class = graph.add("Where", own, rows[2], least)
    selected = graph.add(
        "NonMaxSuppression",
        graph.full(boxes),
        by_class,
        np.array([min(m, n)], np.int64),
        np.array([threshold], np.float32),
        np.array([np.finfo(np.float32).min], np.float32),
    )
    place = graph.add("Gather", selected, np.array([0, 2]), axis=1)  # image and box
    count = graph.add("Shape", selected, start=0, end=1)
    ones = graph.add("Expand", np.array([1.0], np.float32), count)
    marks = graph.add("ScatterND", np.zeros((b, n), np.float32), place, ones)
    kept = graph.add("Greater", marks, np.array(0.5, np.float32))
    score = graph.add("Where", kept, graph.full(scores), least)
    k = np.array([min(m, n)], np.int64)
    values, index = graph.add("TopK", score, k, axis=1, outputs=2)
    found = graph.add("Greater", values, least)
    index = graph.add("Where", found, index, np.array(0))
    if m > n:
        pads = np.array([0, 0, 0, m - n])
        index = graph.add("Pad", index, pads, np.array(0))
        found = graph.add("Cast", found, to=7)
        found = graph.add("Pad", found, pads, np.array(0))
        found = graph.add("Cast", found, to=9)
    shape = (b, m)
    return [
        Tensor(shape, out(eqn).dtype, shape, index, low=0, high=n - 1),
        Tensor(shape, np.dtype(bool), shape, found),
    ]


# RoIAlign --------------------------------------------------------------------------

_align = Primitive("pyramid_roi_align")


@_align.def_abstract_eval
def _(rois, level, *arrays, strides, output_size, **static):
    del level, static
    b, r, _ = rois.shape
    maps = arrays[: len(strides)]
    size = output_size, output_size
    return ShapedArray((b, r, *size, maps[0].shape[-1]), maps[0].dtype)


def pooled(
    features: Features,
    rois: Float[Array, "b r 4"],
    *,
    extent: Mapping[int, tuple[Array, Array]] | None = None,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float | int = 224.0,
    canonical_level: int = 4,
    max_samples: int = align_ops.MAX_SAMPLES,
) -> Float[Array, "b r o o c"]:
    """`models.build.pool_rois` as one primitive, to be written as RoiAlign.

    One thing differs: ONNX's operator has no `max_samples`.
    """
    del max_samples
    strides = tuple(sorted(strides))
    levels = partial(
        align_ops.roi_levels,
        strides=strides,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    level = jax.vmap(levels)(rois)
    ends = []
    if extent is not None:
        ends = [jnp.asarray(x, jnp.int32) for s in strides for x in extent[s]]
    return _align.bind(
        rois,
        level,
        *(features[s] for s in strides),
        *ends,
        strides=strides,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def with_operators(model: Any) -> Any:
    """The model with RoIAlign as one primitive. ValueError for RoIPool."""
    pool = model.pool
    if not isinstance(pool, partial) or pool.func is not pool_rois:
        raise ValueError(
            "ONNX has no operator that pools RoIs as model.roi_pool does: train with "
            "model.roi_align, or export with --format=stablehlo"
        )
    return model.clone(pool=partial(pooled, *pool.args, **pool.keywords))


def _roi_align(graph: Graph, eqn: Any, inputs: list[Tensor]):
    """RoiAlign on each level, of the RoIs that lie there; then in their own order."""
    p = eqn.params
    rois, level, *arrays = inputs
    count = len(p["strides"])
    maps, ends = arrays[:count], arrays[count:]
    b, r, _ = rois.shape
    boxes = graph.reshape(graph.full(rois), (b * r, 4))
    image = np.repeat(np.arange(b), r)
    level = materialised(graph, level)
    flat = graph.reshape(graph.full(level), (b * r,))
    rules = [
        partial(_operator, graph, p, i, maps[i], ends[2 * i : 2 * i + 2])
        for i in range(count)
    ]
    shorter = [_is_shorter(maps[i].shape, ends[2 * i :]) for i in range(count) if ends]
    exact = any(shorter) and not p["aligned"] and p["sampling_ratio"] > 0
    if count == 1 and not exact:
        found = rules[0](boxes, image)
    else:
        places, parts = [], []
        for i in range(count):
            here = graph.add("Equal", flat, np.array(i))
            groups: list[tuple[Callable[..., Any], Any]] = [(rules[i], here)]
            if exact and shorter[i]:
                last = ends[2 * i : 2 * i + 2]
                beyond = _beyond(graph, boxes, image, p["strides"][i], last)
                within = graph.add("And", here, graph.add("Not", beyond))
                by_sample = partial(_by_sample, graph, p, i, last, rules[i])
                groups = [(rules[i], within)]
                groups.append((by_sample, graph.add("And", here, beyond)))
            for rule, which in groups:
                place = graph.add("NonZero", which)
                place = graph.add("Squeeze", place, np.array([0]))
                of_level = [
                    graph.add("Gather", x, place, axis=0) for x in (boxes, image)
                ]
                places.append(place)
                parts.append(rule(*of_level))
        order = graph.add("Concat", *places, axis=0)
        order = graph.add("Unsqueeze", order, np.array([1]))
        at, start = np.arange(b * r), np.zeros(b * r, np.int64)
        back = graph.add("ScatterND", start, order, at)
        found = graph.add("Concat", *parts, axis=0)
        found = graph.add("Gather", found, back, axis=0)
    shape = out(eqn).shape
    of_rois = (b * r, *shape[2:])
    return Tensor(shape, maps[0].dtype, shape, found, image=of_rois)


def _operator(graph, p, i, features, ends, boxes, image, size=None, ratio=None):
    """RoiAlign of RoIs on level `i`; `size` and `ratio` in place of the detector's."""
    name = graph.channels_first(features)
    if ends:
        name = _to_extent(graph, name, features.shape, ends)
    return graph.add(
        "RoiAlign",
        name,
        boxes,
        image,
        mode="avg",
        output_height=size or p["output_size"],
        output_width=size or p["output_size"],
        sampling_ratio=p["sampling_ratio"] if ratio is None else ratio,
        spatial_scale=1 / p["strides"][i],
        coordinate_transformation_mode=(
            "half_pixel" if p["aligned"] else "output_half_pixel"
        ),
    )


def _by_sample(graph, p, i, ends, align, boxes, image):
    """Each sample for itself: those beyond the extent are 0; then their means."""
    ratio = p["sampling_ratio"]
    size = p["output_size"] * ratio
    found = align(boxes, image, size, 1)
    inside = _samples(graph, boxes, image, p["strides"][i], ends, size)
    for axis, mask in inside.items():
        found = graph.add("Mul", found, mask)
        parts = [_every(graph, found, axis, k, ratio) for k in range(ratio)]
        found = functools.reduce(partial(graph.add, "Add"), parts)
    return graph.add("Mul", found, np.float32(1 / ratio**2))


def _is_shorter(shape, ends) -> bool:
    """Whether an extent may end before the map does."""
    return any(_ends_before(e, s) for e, s in zip(ends[:2], shape[1:3], strict=True))


def _ends_before(end, side) -> bool:
    low, _ = end.bounds()
    return low is None or low < side


def _spans(graph, boxes, image, stride, ends):
    """By axis of a map [n, c, h, w]: start, length and extent [m, 1] of unaligned RoIs.

    In cells. Such a RoI is a cell long at least, so that it may end beyond the extent,
    where it has samples that are 0.
    """
    for axis, column, end in ((2, 1, ends[0]), (3, 0, ends[1])):
        low, high = (
            graph.add("Gather", boxes, np.array([c]), axis=1)
            for c in (column, column + 2)
        )
        low, high = (graph.add("Mul", x, np.float32(1 / stride)) for x in (low, high))
        length = graph.add("Max", graph.add("Sub", high, low), np.float32(1))
        last = graph.add("Gather", graph.full(end), image, axis=0)
        last = graph.add("Cast", last, to=element_type(np.float32))
        yield axis, low, length, graph.add("Unsqueeze", last, np.array([1]))


def _beyond(graph, boxes, image, stride, ends):
    """Which RoIs `[m]` end beyond the extent of their image."""
    spans = _spans(graph, boxes, image, stride, ends)
    found = [
        graph.add("Greater", graph.add("Add", low, length), last)
        for _, low, length, last in spans
    ]
    return graph.add("Squeeze", graph.add("Or", *found), np.array([1]))


def _samples(graph, boxes, image, stride, ends, count):
    """By axis of a map: 1 for each of a RoI's `count` samples in the extent, 0 else."""
    masks, places = {}, ((np.arange(count) + 0.5) / count)[None].astype(np.float32)
    for axis, low, length, last in _spans(graph, boxes, image, stride, ends):
        at = graph.add("Add", low, graph.add("Mul", length, places))
        inside = graph.add("LessOrEqual", at, last)
        inside = graph.add("Cast", inside, to=element_type(np.float32))
        others = np.array([1, 5 - axis])
        masks[axis] = graph.add("Unsqueeze", inside, others)
    return masks


def _every(graph, name, axis, first, step):
    """Every `step`-th entry of an axis, from `first`."""
    end = np.array([np.iinfo(np.int64).max])
    return graph.add(
        "Slice", name, np.array([first]), end, np.array([axis]), np.array([step])
    )


def _to_extent(graph, name, shape, ends):
    """The map with its last row and column of the extent repeated up to its border.

    RoIAlign repeats the last pixel of a map, ours the last pixel of the extent.
    """
    b = shape[0]
    for axis, end in ((2, ends[0]), (3, ends[1])):
        side = shape[axis - 1]
        if not _ends_before(end, side):
            continue
        last = graph.add("Sub", graph.full(end), np.array(1))
        parts = [name]
        if b > 1:
            sizes = np.ones(b, np.int64)
            parts = graph.add("Split", name, sizes, axis=0, outputs=b)
        rows = []
        for i, part in enumerate(parts):
            own = graph.add("Gather", last, np.array([i]), axis=0)
            index = graph.add("Min", np.arange(side), own)
            rows.append(graph.add("Gather", part, index, axis=axis))
        name = rows[0] if b == 1 else graph.add("Concat", *rows, axis=0)
    return name


RULES = {"nms": _nms, "pyramid_roi_align": _roi_align}
