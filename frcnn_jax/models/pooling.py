"""What is pooled from the features for each RoI: `roi_align` and `roi_pool`."""

from collections.abc import Mapping
from functools import partial

import jax
from jaxtyping import Array, Float

from frcnn_jax.ops import roi_align as align_ops
from frcnn_jax.ops import roi_pool as pool_ops
from frcnn_jax.types import Features

Number = int | float


def pool_rois(
    features: Features,
    rois: Float[Array, "b r 4"],
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: Number = 224.0,
    canonical_level: int = 4,
    max_samples: int = align_ops.MAX_SAMPLES,
    extent: Mapping[int, tuple[Array, Array]] | None = None,
) -> Float[Array, "b r o o c"]:
    """RoIAlign each RoI from the level of `strides` that suits its size (FPN eq. 1).

    `sampling_ratio=0` is the adaptive rule of Detectron2, up to `max_samples`. `extent`
    is `{stride: (heights, widths)}`, `[b]` each, in pixels of the map.
    """
    missing = set(strides) - set(features)
    if missing:
        raise ValueError(
            f"roi_align.strides={strides}: no features of stride {sorted(missing)}; "
            f"there are {sorted(features)}"
        )
    one_image = partial(
        align_ops.multilevel_roi_align,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
        max_samples=max_samples,
    )
    maps = {s: features[s] for s in sorted(strides)}
    if extent is None:
        return jax.vmap(one_image)(maps, rois)
    extent = {s: extent[s] for s in maps}
    return jax.vmap(lambda m, r, e: one_image(m, r, extent=e))(maps, rois, extent)


def max_pool_rois(
    features: Features,
    rois: Float[Array, "b r 4"],
    *,
    stride: int = 16,
    output_size: int = 7,
    extent: Mapping[int, tuple[Array, Array]] | None = None,
) -> Float[Array, "b r o o c"]:
    """RoIPool each RoI from the one level of `stride` (Fast R-CNN, Sec 2.1).

    `extent` is that of `pool_rois`.
    """
    if stride not in features:
        raise ValueError(
            f"roi_pool.stride={stride}: no features of that stride; there are "
            f"{sorted(features)}"
        )
    one_image = partial(pool_ops.roi_pool, stride=stride, output_size=output_size)
    if extent is None:
        return jax.vmap(one_image)(features[stride], rois)
    pool = lambda m, r, e: one_image(m, r, extent=e)  # noqa: E731
    return jax.vmap(pool)(features[stride], rois, extent[stride])
