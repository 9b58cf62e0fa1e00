"""Cascade R-CNN's network: several box heads on the same pooled features.

Legend: b images, r RoIs, h w c pooled map, C classes.
"""

from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax.models.faster_rcnn import FasterRCNN
from frcnn_jax.types import Features


class CascadeHead(nn.Module):
    """Box heads, one a stage, none of whose parameters are shared (arXiv:1712.00726).

    Names: `stages_0`, `stages_1`, ..., each with the names of its head.
    """

    stages: tuple[nn.Module, ...]

    def __call__(
        self,
        x: Float[Array, "b r h w c"],
        keys: Array | None = None,
        stage: int | None = None,
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r 1 4"]]:
        """class_logits and class_deltas of one stage, counted from 0.

        Without `stage` all stages run on the same RoIs and the last one answers: what
        `init` needs.
        """
        if stage is not None:
            return self.stages[stage](x, keys)
        return [head(x, keys) for head in self.stages][-1]


class CascadeRCNN(FasterRCNN):
    """FasterRCNN whose `box_head` is a CascadeHead."""

    def detect_stage(
        self,
        features: Features,
        rois: Float[Array, "b r 4"],
        stage: int,
        keys: Array | None = None,
        extent: Int[Array, "b 2"] | None = None,
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r 1 4"]]:
        """`detect` by one stage, counted from 0; `keys` only for dropout."""
        return self.box_head(self.pooled(features, rois, extent), keys, stage)
