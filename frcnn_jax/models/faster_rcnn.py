"""Faster R-CNN (Ren et al. 2016, fig. 2): one network that proposes and classifies.

    images -> backbone [-> fpn] -> rpn_head -> logits, deltas        FasterRCNN.rpn
    features, RoIs -> roi_align -> box_head -> class logits, deltas  FasterRCNN.detect

b images, h w map, k anchors a place, a anchors of all levels, r RoIs, C classes.
Proposals and sampling, between the two calls, have no parameters; they are not part of
this module. See `build` for how the parts are put together.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, UInt32

from frcnn_jax.models import layers
from frcnn_jax.ops import anchors as anchor_ops
from frcnn_jax.ops import extents
from frcnn_jax.types import Features

Number = int | float


class RPNOutput(NamedTuple):
    """The output of the RPN; levels are concatenated, small stride first."""

    features: Features  # of every stride; the RoIs are pooled from them
    anchors: Float[Array, "b a 4"]
    logits: Float[Array, "b a"] | Float[Array, "b a 2"]
    deltas: Float[Array, "b a 4"]
    level_sizes: tuple[int, ...]  # anchors of each level, static
    inside: Bool[Array, "b a"] | None = None  # anchors within the extent; None: all
    places: UInt32[Array, " a"] | None = None  # see `ops.anchors.places`


class FastRCNN(nn.Module):
    """The detector of RoIs that another method proposes (Girshick 2015, fig. 1).

    A backbone maps normalised images `[b, h, w, 3]` to `{stride: [b, h, w, c]}`, `pool`
    cuts out RoIs; a box head maps `[b, r, o, o, c]` (and a key an image, for dropout)
    to class_logits and class_deltas. Names of parameters: `backbone`, `fpn`,
    `box_head`. A backbone with a field `stochastic_depth` above 0 takes `keys`, too.
    """

    backbone: nn.Module
    fpn: nn.Module | None
    box_head: nn.Module
    pool: Callable[..., Float[Array, "b r o o c"]]
    pixel_mean: tuple[Number, Number, Number]
    pixel_std: tuple[Number, Number, Number]
    pad_to: int

    def normalize(
        self, image: Num[Array, "b h w 3"], image_size: Int[Array, "b 2"]
    ) -> Float[Array, "b h2 w2 3"]:
        """(image - pixel_mean) / pixel_std of RGB 0..255; zero outside `image_size`.

        A canvas that is no multiple of `pad_to` is padded to one.
        """
        mean = jnp.asarray(self.pixel_mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.pixel_std, jnp.float32)[None, None, None]
        pixels = (image.astype(jnp.float32) - mean) / std
        return layers.pad_to_multiple(layers.inside(pixels, image_size), self.pad_to)

    def extent(self, image_size: Int[Array, "b 2"]) -> Int[Array, "b 2"]:
        """The sizes rounded up to `pad_to`: what an image would have for a canvas."""
        return extents.extent_of(image_size, self.pad_to)

    def features(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
        keys: Array | None = None,
    ) -> Features:
        """Run backbone and neck on normalised images of any size.

        The cells within an image's `extent` (pixels; None: the whole canvas) are those
        of a canvas of that size, if the backbone's `__call__` takes `extent`. Beyond it
        they may hold anything. `keys` `[b]` are for stochastic depth; without, as in
        prediction, it is off.
        """
        more = {}
        if "extent" in inspect.signature(type(self.backbone).__call__).parameters:
            more["extent"] = extent
        if keys is not None and getattr(self.backbone, "stochastic_depth", 0) > 0:
            more["keys"] = keys
        features = self.backbone(images, **more)
        return features if self.fpn is None else self.fpn(features, extent)

    def detect(
        self,
        features: Features,
        rois: Float[Array, "b r 4"],
        keys: Array | None = None,
        extent: Int[Array, "b 2"] | None = None,
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` only for dropout.

        RoIs are pooled from the cells within the `extent` (pixels).
        """
        return self.box_head(self.pooled(features, rois, extent), keys)

    def pooled(
        self,
        features: Features,
        rois: Float[Array, "b r 4"],
        extent: Int[Array, "b 2"] | None = None,
    ) -> Float[Array, "b r o o c"]:
        """Cut out the RoIs, from the cells within the `extent`: a box head's input."""
        sizes = None
        if extent is not None:
            sizes = {s: cells_of(extent, s) for s in features}
        return self.pool(features, rois, extent=sizes)

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Run everything on one RoI an image: what `init` needs."""
        return self.detect(self.features(images), _one_roi(images))


class FasterRCNN(FastRCNN):
    """FastRCNN and, on the same features, the RPN that proposes its RoIs.

    `anchors` maps `{stride: (h, w)}` to boxes, `levels` are the maps that the RPN sees.
    Names of parameters: those of FastRCNN and `rpn_head`.
    """

    rpn_head: nn.Module
    anchors: Callable[..., Float[Array, "a 4"]]
    levels: tuple[int, ...]

    def rpn(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
        keys: Array | None = None,
    ) -> RPNOutput:
        """Run backbone, neck and RPN on normalised images; arguments of `features`."""
        return self.rpn_of(self.features(images, extent, keys), extent)

    def rpn_of(
        self, features: Features, extent: Int[Array, "b 2"] | None = None
    ) -> RPNOutput:
        """Run the RPN on the features of images."""
        missing = set(self.levels) - set(features)
        if missing:
            raise ValueError(
                f"anchors.strides={self.levels}: no features of stride "
                f"{sorted(missing)}; there are {sorted(features)}"
            )
        levels = {s: features[s] for s in sorted(self.levels)}
        sizes = {s: f.shape[1:3] for s, f in levels.items()}
        logits, deltas = self.rpn_head(levels, extent)
        k, b = self.rpn_head.num_anchors, logits.shape[0]
        if extent is None:
            anchors, inside = jnp.asarray(self.anchors(sizes))[None], None
        else:
            cells = {s: cells_of(extent, s) for s in sizes}
            anchors = jax.vmap(lambda e: self.anchors(sizes, extent=e))(cells)
            inside = anchors_inside(cells, sizes, k)
        return RPNOutput(
            features,
            jnp.broadcast_to(anchors, (b, *anchors.shape[1:])),
            logits,
            deltas,
            tuple(h * w * k for h, w in sizes.values()),
            inside,
            anchor_ops.places(list(sizes.values()), k),
        )

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[RPNOutput, Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Run both stages, the second on one RoI an image: what `init` needs."""
        out = self.rpn(images)
        return out, *self.detect(out.features, _one_roi(images))


def cells_of(
    extent: Int[Array, "b 2"], key: int
) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
    """Heights and widths of the extents in cells of the map of that key."""
    h, w = jnp.moveaxis(extents.cells(extent, extents.stride_of(key)), -1, 0)
    return h, w


def anchors_inside(
    cells: dict[int, tuple[Array, Array]], sizes: dict[int, tuple[int, ...]], k: int
) -> Bool[Array, "b a"]:
    """Which anchors stand at cells within the extents, on maps of `sizes` (h, w)."""
    levels = [extents.mask(jnp.stack(cells[s], -1), size) for s, size in sizes.items()]
    return jnp.concatenate(
        [jnp.repeat(m.reshape((m.shape[0], -1)), k, axis=1) for m in levels], axis=1
    )


def _one_roi(images):
    return jnp.broadcast_to(jnp.float32([0, 0, 32, 32]), (images.shape[0], 1, 4))
