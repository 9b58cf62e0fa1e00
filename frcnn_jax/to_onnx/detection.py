"""NMS and RoIAlign: ONNX has an operator for each, and their primitives become these.

b images · n candidates · m kept · k classes · r RoIs of an image · h w c map
"""

from collections.abc import Mapping
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
from frcnn_jax.to_onnx.tensors import Graph, Tensor
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

    Two things differ. ONNX's operator has no `max_samples`. Without `aligned`, of a RoI
    that is narrower than a pixel of the map and lies at the border of an `extent`, it
    reads the extent's last pixel again where ours reads zeros. All else is the same.
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

    def align(i, boxes, image):
        name = graph.channels_first(maps[i])
        if ends:
            name = _to_extent(graph, name, maps[i].shape, ends[2 * i : 2 * i + 2])
        return graph.add(
            "RoiAlign",
            name,
            boxes,
            image,
            mode="avg",
            output_height=p["output_size"],
            output_width=p["output_size"],
            sampling_ratio=p["sampling_ratio"],
            spatial_scale=1 / p["strides"][i],
            coordinate_transformation_mode=(
                "half_pixel" if p["aligned"] else "output_half_pixel"
            ),
        )

    if count == 1:
        found = align(0, boxes, image)
    else:
        places, parts = [], []
        for i in range(count):
            here = graph.add("Equal", flat, np.array(i))
            place = graph.add("Squeeze", graph.add("NonZero", here), np.array([0]))
            of_level = [graph.add("Gather", x, place, axis=0) for x in (boxes, image)]
            places.append(place)
            parts.append(align(i, *of_level))
        order = graph.add("Concat", *places, axis=0)
        order = graph.add("Unsqueeze", order, np.array([1]))
        at, start = np.arange(b * r), np.zeros(b * r, np.int64)
        back = graph.add("ScatterND", start, order, at)
        found = graph.add("Concat", *parts, axis=0)
        found = graph.add("Gather", found, back, axis=0)
    shape = out(eqn).shape
    of_rois = (b * r, *shape[2:])
    return Tensor(shape, maps[0].dtype, shape, found, image=of_rois)


def _to_extent(graph, name, shape, ends):
    """The map with its last row and column of the extent repeated up to its border.

    RoIAlign repeats the last pixel of a map, ours the last pixel of the extent.
    """
    b = shape[0]
    for axis, end in ((2, ends[0]), (3, ends[1])):
        side = shape[axis - 1]
        low, _ = end.bounds()
        if low is not None and low >= side:
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
