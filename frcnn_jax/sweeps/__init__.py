"""Many runs of one experiment: sweeps and searches (`sweep`), their jobs (`launch`)."""
