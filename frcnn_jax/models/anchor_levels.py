"""The anchors of a detector's levels: the group `model.anchors`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from frcnn_jax import ranges
from frcnn_jax.ops import anchors as anchor_ops

Number = int | float


def legacy_cells(sizes, aspect_ratios):
    """The anchors of `ops.anchors.legacy_cell_anchors` for `sizes` in pixels."""
    return anchor_ops.legacy_cell_anchors(
        aspect_ratios=aspect_ratios, scales=[s / 16 for s in np.ravel(sizes)]
    )


CELLS = dict(
    none=anchor_ops.cell_anchors,
    detectron2=anchor_ops.size_first_cell_anchors,
    torchvision=anchor_ops.rounded_cell_anchors,
    legacy=legacy_cells,
)


def anchor_pyramid(
    feature_sizes: Mapping[int, tuple[int, int]],
    *,
    extent: Mapping[int, tuple[Any, Any]] | None = None,
    strides: tuple[int, ...] = (4, 8, 16, 32, 64),
    sizes: tuple[Number | tuple[Number, ...], ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
    aspect_ratios: tuple[Number, ...] = (0.5, 1.0, 2.0),
    offset: Number = 0.0,
    rounding: str = "none",
    levels: tuple[int, ...] = (),
) -> Float[Array, "a 4"]:
    """Return the anchors of all `strides`, for feature maps of `{stride: (h, w)}`.

    `sizes` has one entry a level: a length in pixels, or a tuple of them. `rounding` is
    that of other codes' weights, their order of anchors included: "torchvision"
    (`torchvision_strides` as well), "legacy" (py-faster-rcnn), "detectron2" (sizes
    outside, nothing rounded), or "none". `levels` are the keys of the maps where they
    are not the strides, as with two maps of one stride. `extent` is that of the image,
    `{key: (h, w)}` in cells: torchvision's strides follow from it.
    """
    if rounding not in CELLS:
        raise ValueError(
            f"anchors.rounding={rounding!r}: expected one of {tuple(CELLS)}"
        )
    keys, steps = levels or strides, list(strides)
    if rounding == "torchvision":
        inside = [(extent or feature_sizes)[key] for key in keys]
        steps = torchvision_strides(inside, strides)
    return anchor_ops.pyramid(
        [feature_sizes[key] for key in keys],
        steps,
        sizes,
        aspect_ratios,
        offset=offset,
        cells=CELLS[rounding],
    )


def torchvision_strides(
    maps: Sequence[tuple[Any, Any]], strides: Sequence[int]
) -> list[tuple[Any, Any]]:
    """The strides (y, x) that torchvision gives the maps: whole pixels, image // map.

    They differ from `strides` where a map was rounded up: 800 // 13 = 61 in place of 64
    at 800 pixels. An extent that is a multiple of 64 has the true ones. Sizes of maps
    may be traced.

    >>> torchvision_strides([(200, 336), (13, 21)], (4, 64))
    [(4, 4), (61, 64)]
    """
    (h, w), stride = maps[0], strides[0]
    return [(h * stride // y, w * stride // x) for y, x in maps]


def anchors_per_place(
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32, 64),
    sizes: tuple[Number | tuple[Number, ...], ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
    levels: tuple[int, ...] = (),
    **kwargs: Any,
) -> int:
    """Return k, the same for all levels; raise ValueError where levels disagree."""
    size = ranges.either(ranges.POSITIVE, ranges.several(ranges.POSITIVE))
    ranges.check(
        "model.anchors",
        strides=(strides, ranges.several(ranges.COUNT)),
        sizes=(sizes, ranges.several(size)),
        aspect_ratios=(
            kwargs.get("aspect_ratios", (1.0,)),
            ranges.several(ranges.POSITIVE),
        ),
        offset=(kwargs.get("offset", 0.0), ranges.FINITE),
        levels=(levels, ranges.several(ranges.COUNT, least=0)),
    )
    if list(strides) != sorted(strides):
        raise ValueError(f"anchors.strides={strides}: expected them to ascend")
    if len(strides) != len(sizes):
        raise ValueError(
            f"anchors: {len(strides)} strides {strides} but {len(sizes)} sizes "
            f"{sizes}; give one size, or one tuple of sizes, for each stride"
        )
    if levels and len(levels) != len(strides):
        raise ValueError(
            f"anchors.levels={levels}: expected one key for each of strides={strides}"
        )
    counts = {
        len(anchor_pyramid({8: (1, 1)}, strides=(8,), sizes=(size,), **kwargs))
        for size in sizes
    }
    if len(counts) != 1:
        raise ValueError(
            f"anchors: sizes={sizes} give {sorted(counts)} anchors a place; the RPN "
            "head is shared, so every level needs the same number"
        )
    return counts.pop()
