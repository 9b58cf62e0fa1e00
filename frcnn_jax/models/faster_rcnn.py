"""Faster R-CNN (Ren et al. 2016, fig. 2): one network that proposes and classifies.

    images -> backbone [-> fpn] -> rpn_head -> logits, deltas        FasterRCNN.rpn
    features, RoIs -> roi_align -> box_head -> class logits, deltas  FasterRCNN.detect

b images, h w map, k anchors a place, a anchors of all levels, r RoIs, C classes.
Proposals and sampling, between the two calls, have no parameters; they are not part of
this module. See `build` for how the parts are put together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from frcnn_jax.types import Features

Number = int | float


class RPNOutput(NamedTuple):
    """The output of the RPN; levels are concatenated, small stride first."""

    features: Features  # of every stride; the RoIs are pooled from them
    anchors: Float[Array, "a 4"]  # the same for every image
    logits: Float[Array, "b a"] | Float[Array, "b a 2"]
    deltas: Float[Array, "b a 4"]
    level_sizes: tuple[int, ...]  # anchors of each level, static


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

    def normalize(
        self, image: Num[Array, "b h w 3"], image_size: Int[Array, "b 2"]
    ) -> Float[Array, "b h w 3"]:
        """(image - pixel_mean) / pixel_std of RGB 0..255; zero outside `image_size`."""
        mean = jnp.asarray(self.pixel_mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.pixel_std, jnp.float32)[None, None, None]
        h, w = image.shape[1:3]
        inside_y = jnp.arange(h)[None] < image_size[:, :1]
        inside_x = jnp.arange(w)[None] < image_size[:, 1:]
        inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
        return jnp.where(inside, (image.astype(jnp.float32) - mean) / std, 0.0)

    def features(
        self, images: Float[Array, "b h w 3"], keys: Array | None = None
    ) -> Features:
        """Run backbone and neck on normalised images of any size.

        `keys` `[b]` are for stochastic depth; without, as in prediction, it is off.
        """
        draws = keys is not None and getattr(self.backbone, "stochastic_depth", 0) > 0
        features = self.backbone(images, **(dict(keys=keys) if draws else {}))
        return features if self.fpn is None else self.fpn(features)

    def detect(
        self,
        features: Features,
        rois: Float[Array, "b r 4"],
        keys: Array | None = None,
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` only for dropout."""
        return self.box_head(self.pool(features, rois), keys)

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
        self, images: Float[Array, "b h w 3"], keys: Array | None = None
    ) -> RPNOutput:
        """Run backbone, neck and RPN on normalised images; `keys` as for `features`."""
        return self.rpn_of(self.features(images, keys))

    def rpn_of(self, features: Features) -> RPNOutput:
        """Run the RPN on the features of images."""
        missing = set(self.levels) - set(features)
        if missing:
            raise ValueError(
                f"anchors.strides={self.levels}: no features of stride "
                f"{sorted(missing)}; there are {sorted(features)}"
            )
        levels = {s: features[s] for s in sorted(self.levels)}
        sizes = {s: f.shape[1:3] for s, f in levels.items()}
        logits, deltas = self.rpn_head(levels)
        k = self.rpn_head.num_anchors
        return RPNOutput(
            features,
            jnp.asarray(self.anchors(sizes)),
            logits,
            deltas,
            tuple(h * w * k for h, w in sizes.values()),
        )

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[RPNOutput, Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Run both stages, the second on one RoI an image: what `init` needs."""
        out = self.rpn(images)
        return out, *self.detect(out.features, _one_roi(images))


def _one_roi(images):
    return jnp.broadcast_to(jnp.float32([0, 0, 32, 32]), (images.shape[0], 1, 4))
