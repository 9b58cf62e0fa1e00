"""Algorithms by name: which there are, what they check, and what older runs have."""

import pytest

from frcnn_jax.training import algorithms
from frcnn_jax.training import config as configs
from frcnn_jax.training.algorithms import fast_rcnn, faster_rcnn
from tests.training import small

INTERFACE = ("PROPOSES", "GROUPS", "check", "loss_names", "first_stage", "propose")
INTERFACE += ("image_losses", "detect")


@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn"])
def test_each_has_what_the_others_call(name):
    module = algorithms.find(name)
    assert all(hasattr(module, part) for part in INTERFACE)
    assert all(f"`{part}" in algorithms.__doc__ for part in INTERFACE)


def test_a_dotted_path_is_a_module_of_your_own():
    name = "frcnn_jax.training.algorithms.fast_rcnn"
    assert algorithms.find(name) is fast_rcnn


@pytest.mark.parametrize("name", ["fater_rcnn", "os.path", "", "training.nothing"])
def test_an_unknown_name_lists_those_there_are(name):
    with pytest.raises(ValueError, match="config.algorithm=.*(faster_rcnn|a text)"):
        algorithms.find(name)


def test_a_configuration_of_before_has_the_algorithm_of_its_model():
    c = small.config()
    del c.algorithm
    assert configs.check(c)["algorithm"] == "faster_rcnn"
    assert algorithms.of(c.to_dict()) is faster_rcnn
    configs.check_resumed(c, small.config())
    c.model.external_proposals = True
    assert algorithms.of(c.to_dict()) is fast_rcnn


@pytest.mark.parametrize(
    "name, external, message",
    [
        ("fast_rcnn", False, "needs config.model.external_proposals=True"),
        ("faster_rcnn", True, "the algorithm is 'fast_rcnn'"),
    ],
)
def test_an_algorithm_and_a_model_that_do_not_fit_are_refused(name, external, message):
    c = small.config()
    c.algorithm, c.model.external_proposals = name, external
    with pytest.raises(ValueError, match=message):
        configs.check(c)


def test_weights_of_losses_are_those_of_the_algorithm():
    c = small.config()
    del c.loss_weights.roi_box
    with pytest.raises(ValueError, match="loss_weights has the keys.*roi_box"):
        configs.check(c)
    c = small.config()
    c.loss_weights.mask = 1.0
    with pytest.raises(ValueError, match="loss_weights has the keys.*mask"):
        configs.check(c)
