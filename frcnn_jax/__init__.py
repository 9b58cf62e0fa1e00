"""Faster R-CNN in JAX: the pure layer.

Importing this package loads jax and numpy only. Models (flax), training (optax, orbax),
data (grain, OpenCV) and the prediction API are imported by their own names:
`frcnn_jax.models`, `frcnn_jax.training`, `frcnn_jax.data`, `frcnn_jax.detector`.
"""

from frcnn_jax import cascade, detections, losses, proposals, roi_losses, targets, types
from frcnn_jax._version import __version__
from frcnn_jax.ops import anchors, boxes, matching, nms, roi_align, roi_pool

__all__ = [
    "__version__",
    "anchors",
    "boxes",
    "cascade",
    "detections",
    "losses",
    "matching",
    "nms",
    "proposals",
    "roi_align",
    "roi_losses",
    "roi_pool",
    "targets",
    "types",
]
