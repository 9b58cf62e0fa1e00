"""Four-step alternating training as a user runs it, on the tests' small model."""

import numpy as np
import pytest

from frcnn_jax.training import checkpoint
from tests.scripts.test_scripts import last_json, script
from tests.training import small

EXPERIMENT = """
from experiments import common
from tests.training import small


def get_config(arg):
    step = common.parse_arg(arg, step=1)["step"]
    c = small.config(total_steps=2, eval_every=2, checkpoint_every=1)
    common.alternating(c, step)
    return c
"""


@pytest.mark.slow
def test_four_steps_end_in_one_network_that_shares_its_features(tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT)
    runs = tmp_path / "runs"
    call = (
        *("train_alternating", f"--experiment={experiment}", f"--workdir={runs}"),
        "--set=optimizer.learning_rate=0.05",
    )
    result = last_json(script(*call))
    assert {"AP", "AP50"} <= set(result)
    one, two, three, four = (
        checkpoint.read_variables(checkpoint.find(runs / f"step{i}", best=False))[
            "params"
        ]
        for i in (1, 2, 3, 4)
    )
    assert set(one) == set(three) == set(four) == {*two, "rpn_head"}
    # Not shared after two steps, shared to the last bit after four.
    assert differs(one["backbone"], two["backbone"])
    assert differs(one["fpn"], two["fpn"])
    for part in ("backbone", "fpn"):
        small.assert_trees_equal(two[part], three[part])
        small.assert_trees_equal(two[part], four[part])
    small.assert_trees_equal(two["box_head"], three["box_head"])
    small.assert_trees_equal(three["rpn_head"], four["rpn_head"])
    # What each step is for did learn.
    assert differs(three["rpn_head"], one["rpn_head"])
    assert differs(four["box_head"], three["box_head"])
    # Again: everything is there, nothing is trained.
    again = script(*call)
    assert last_json(again) == pytest.approx(result)
    assert "step 1/2" not in again.stderr


def differs(a, b):
    first, second = (checkpoint.named_leaves(tree) for tree in (a, b))
    return all(np.abs(first[n] - second[n]).max() > 0 for n in first if "kernel" in n)
