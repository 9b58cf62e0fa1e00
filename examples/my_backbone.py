"""A backbone of your own in one file: a small ConvNeXt (arXiv:2201.03545).

python -m examples.my_backbone      # trains the demo with it, see `main`

or, from your own experiment or the command line of any experiment,

    --config.model.backbone.name=examples.my_backbone

A backbone is a Flax module called `Backbone` that maps normalised images to
`{stride: features}`, each map `ceil(h / stride)` cells high. Its fields are what the
group `model.backbone` may set. Before a layer that mixes cells, `layers.inside` sets to
zero what lies beyond the extent of an image (`frcnn_jax.ops.extents`): then neither
the canvas nor its company changes what an image gets. `models.checks.check_extent`
finds a layer that forgot.
"""

import json
import sys
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from experiments import shapes_demo
from frcnn_jax.models import layers
from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr


class Backbone(nn.Module):
    """A 4x4/4 stem, then a stage per width: `{4: .., 8: .., 16: .., ...}`."""

    widths: tuple[int, ...] = (24, 48, 96, 96)
    blocks: int = 1
    dtype: Any = jnp.float32  # where it has this field, `model.dtype` sets it

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,  # (h, w) of each image in pixels
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        def conv(features, size, stride, groups=1):
            return nn.Conv(
                features,
                (size, size),
                strides=stride,
                feature_group_count=groups,
                dtype=self.dtype,
            )

        def norm():
            return nn.LayerNorm(dtype=self.dtype)

        features, x, now = {}, images, extent
        for i, width in enumerate(self.widths):
            step = 2 if i else 4
            x = norm()(conv(width, step, step)(layers.inside(x, now)))
            now = layers.cells(now, step)
            for _ in range(self.blocks):
                y = norm()(conv(width, 7, 1, groups=width)(layers.inside(x, now)))
                y = nn.gelu(nn.Dense(2 * width, dtype=self.dtype)(y))
                x = x + nn.Dense(width, dtype=self.dtype)(y)
            features[4 * 2**i] = x
        return features


def main(workdir: str, steps: int = 300) -> dict:
    """Trains the demo's detector on this backbone; returns its metrics."""
    config: Any = shapes_demo.get_config()
    config.total_steps = config.eval_every = config.checkpoint_every = steps
    config.model.backbone = dict(name="examples.my_backbone")
    return train_and_evaluate(config, workdir)


if __name__ == "__main__":
    log_to_stderr()
    print(json.dumps(main(sys.argv[1] if len(sys.argv) > 1 else "runs/my_backbone")))
