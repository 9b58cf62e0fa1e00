"""Many runs of one experiment: sweeps and searches (`sweep`), their jobs (`launch`)."""

from frcnn_jax.extras import need

need("train", "rich")
