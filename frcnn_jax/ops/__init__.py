"""Pure functions of one image: boxes, anchors, matching, NMS, RoIAlign (jax only)."""
