import json
import re

import pytest

from experiments import common
from frcnn_jax.training import config as configs
from frcnn_jax.training import rehearsal
from tests.training import small


def test_unknown_and_missing_keys_are_named():
    c = small.config()
    c.lerning_rate = 1.0
    del c.postprocess
    with pytest.raises(
        ValueError, match="unknown key 'lerning_rate'.*missing.*'postpro"
    ):
        configs.check(c)


def test_targets_and_decoding_must_share_their_stds():
    c = small.config()
    c.postprocess.stds = (1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="roi_targets.stds=.*postprocess.stds="):
        configs.check(c)


def test_change_sets_leaves_of_any_depth():
    c = small.config()
    configs.change(c, ["data.name=voc", "postprocess.score=0.2", "batch_size=8"])
    assert (c.data.name, c.postprocess.score, c.batch_size) == ("voc", 0.2, 8)


def test_keywords_that_an_experiment_leaves_to_their_defaults_can_be_changed():
    c = small.config()
    changes = ["optimizer.clip_norm=10.0", "rpn_targets.exclude_padding=False"]
    changes += ["roi_targets.bg_lo=0.1", "rpn_targets.straddle=0.0"]
    for group, leaf in (change.partition("=")[0].split(".") for change in changes):
        assert leaf not in c[group]
    configs.change(c, changes)
    assert (c.optimizer.clip_norm, c.rpn_targets.exclude_padding) == (10.0, False)
    assert (c.roi_targets.bg_lo, c.rpn_targets.straddle) == (0.1, 0.0)
    configs.check(c)
    del c.rpn_targets  # as Fast R-CNN
    with pytest.raises(ValueError, match="rpn_targets.straddle: the config has no gro"):
        configs.admit(c, ["rpn_targets.straddle"], "shapes")
    for wrong in ("optimizer.clip", "rpn_loss.normalizer", "optimizer.total_steps"):
        with pytest.raises(ValueError, match=f"config.{wrong}: there is no"):
            configs.admit(c, [wrong], "shapes")


def test_leaves_of_what_is_found_by_name_need_not_be_there():
    c = small.config()
    changes = ["postprocess.name=soft_nms", "postprocess.sigma=0.4", "views.tile=(3,4)"]
    changes += [
        "views.merge=smaller",
        "roi_cls_loss.name=focal",
        "roi_cls_loss.gamma=1",
    ]
    configs.change(c, changes)
    assert (c.postprocess.name, c.postprocess.sigma) == ("soft_nms", 0.4)
    assert (c.views.tile, c.views.merge) == ((3, 4), "smaller")
    assert c.roi_cls_loss.to_dict() == dict(name="focal", gamma=1)
    configs.check(c)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ([], []),
        (["roi_cls_loss.name=focal"], []),
        (
            ["roi_box_loss.name=giou"],
            ["detector_loss.beta=0.1111 is not .*'giou'.*term$"],
        ),
        (["roi_box_loss.name=l1"], ["detector_loss.beta=0.1111 is not used"]),
        (["roi_box_loss.name=smooth_l1"], ["not used.*roi_box_loss.beta=1$"]),
        (
            ["roi_box_loss.name=smooth_l1", "roi_box_loss.beta=0.25"],
            ["not used.*with config.roi_box_loss.beta=0.25$"],
        ),
    ],
)
def test_a_beta_that_a_named_loss_replaces_is_said(changes, expected):
    c = small.config()
    c.detector_loss = dict(beta=1 / 9)
    configs.change(c, changes)
    lines = rehearsal.unused(configs.check(c))
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line)


def test_no_line_without_a_beta_to_replace():
    c = small.config()
    c.detector_loss = {}
    configs.change(c, ["roi_box_loss.name=giou"])
    assert rehearsal.unused(configs.check(c)) == []


@pytest.mark.parametrize(
    "item, message",
    [
        ("batch_size", "expected NAME=VALUE"),
        ("dta.name=voc", "no group 'dta'"),
        ("postprocess.scor=0.1", r"no 'scor' there, but .*\bscore\b"),
        ("views.tiles=400", "no group 'views'|no 'tiles'"),
        ("roi_box_loss.betta=1.0", "no 'betta'"),
        ("batch_size=many", "expected a value like 2"),
    ],
)
def test_change_names_what_is_wrong(item, message):
    with pytest.raises(ValueError, match=message):
        configs.change(small.config(), [item])


def test_resumed_run_may_move_but_not_learn_otherwise():
    old, new = small.config(), small.config()
    new.log_every, new.eval_every = 7, 9
    configs.check_resumed(old, new)
    new.optimizer.learning_rate = 0.5
    new.data.extra = 1
    with pytest.raises(
        ValueError, match="(?s)data.extra: 'not set' -> 1.*rate: 0.02 -> 0"
    ):
        configs.check_resumed(old, new)


def test_json_and_back_keeps_tuples():
    c = small.config()
    again = configs.from_json(json.loads(c.to_json()))
    assert again.to_dict() == c.to_dict()


def test_parse_arg_reads_types_and_refuses_the_unknown():
    args = common.parse_arg("runlocal,depth=101", runlocal=False, depth=50, lr=0.1)
    assert args == dict(runlocal=True, depth=101, lr=0.1)
    assert common.parse_arg(None, runlocal=False) == dict(runlocal=False)
    with pytest.raises(ValueError, match="'detph' is unknown: expected.*'depth'"):
        common.parse_arg("detph=1", depth=50)
    with pytest.raises(ValueError, match="expected depth=int"):
        common.parse_arg("depth=deep", depth=50)
