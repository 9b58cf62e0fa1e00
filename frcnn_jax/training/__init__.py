"""Training: read `step.py` first (the algorithm), then `loop.py` (the run)."""
