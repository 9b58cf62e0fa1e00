"""Networks in Flax Linen: backbones, FPN, heads, and their composition FasterRCNN.

A backbone is one file with a class `Backbone`, a box head a class `BoxHead`; both are
found by module name (`resnet` is `frcnn_jax.models.resnet`; `my.own.module` works as
well). There is no registry: to add one, add a file.
"""

from frcnn_jax.extras import need

need("train", "flax")

from frcnn_jax.models.build import build_backbone, build_detector  # noqa: E402
from frcnn_jax.models.faster_rcnn import FasterRCNN, FastRCNN, RPNOutput  # noqa: E402

__all__ = [
    "FastRCNN",
    "FasterRCNN",
    "RPNOutput",
    "build_backbone",
    "build_detector",
]
