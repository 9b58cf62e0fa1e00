"""Training: read `step.py` first (the algorithm), then `loop.py` (the run)."""

from frcnn_jax.extras import need

need("train", "optax", "orbax", "ml_collections", "absl", "tensorboardX")
