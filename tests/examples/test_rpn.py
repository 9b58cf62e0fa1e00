"""Each framework's RPN learns with our targets and losses."""

import pytest

from examples import rpn_equinox, rpn_nnx

EXAMPLES = pytest.mark.parametrize("example", [rpn_nnx, rpn_equinox])


@pytest.mark.slow
@EXAMPLES
def test_loss_falls(example):
    losses, recall = example.main(steps=15)
    assert losses[-1] < 0.5 * losses[0]
    assert 0 <= recall <= 1


@pytest.mark.slow
@EXAMPLES
def test_proposals_find_the_objects(example):
    _, recall = example.main()
    assert recall > 0.6
