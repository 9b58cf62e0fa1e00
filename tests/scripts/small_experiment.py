"""The tests' small configuration as an experiment file."""

from tests.training import small


def get_config():
    return small.config(total_steps=2, eval_every=2, checkpoint_every=2)
