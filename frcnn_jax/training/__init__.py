"""Training: read `algorithms/faster_rcnn.py`, then `step.py`, then `loop.py`."""

from frcnn_jax.extras import need

need("train", "optax", "orbax", "ml_collections", "absl", "tensorboardX")
