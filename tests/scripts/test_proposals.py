"""Proposals as a user makes, judges and trains on them."""

import json

import cv2
import numpy as np
import pytest

from frcnn_jax.data import proposal_files
from tests.scripts.test_scripts import ROOT, last_json, script, workdir

__all__ = ["workdir"]  # a run of the small experiment
CONFIG = ROOT / "tests" / "scripts" / "small_experiment.py"


def test_selective_search_goes_on_where_it_stopped_and_is_judged(tmp_path):
    output = tmp_path / "{split}.npz"
    parts = tmp_path / "val.npz.parts"
    mine = {str(i): proposal_files.NONE for i in ("taken", "from", "before")}
    proposal_files.write(parts / "0000000.npz", mine)
    options = dict(mode="fast", max_proposals=50, max_side=0, images=3)
    (parts / "options.json").write_text(json.dumps(options))
    call = ("make_proposals", f"--config={CONFIG}", f"--output={output}")
    limits = ("--splits=val[:3]", "--workers=1")
    other = script(*call, *limits, "--max_proposals=9", code=2)
    assert "other settings" in other.stderr
    done = script(*call, *limits, "--max_proposals=50")
    assert list(proposal_files.read(tmp_path / "val.npz")) == list(mine)
    assert not parts.exists()

    done = script(*call, *limits, "--max_proposals=50")
    result = last_json(done)["val[:3]"]
    assert result["images"] == 3 and 1 < result["mean"] <= 50
    plot = tmp_path / "plot.png"
    done = script(
        *("evaluate_proposals", f"--config={CONFIG}", "--counts=5,50"),
        *(f"--proposals=SS={tmp_path / 'val.npz'}", f"--plot={plot}"),
    )
    found = last_json(done)["SS"]
    assert found["AR@50"] >= found["AR@5"] and found["R50@50"] > 0.3
    assert "SS 50" in done.stdout
    assert cv2.imread(str(plot)).shape == (360, 720, 3)


@pytest.mark.slow
def test_rpn_of_a_run_proposes_for_fast_rcnn(workdir, tmp_path):
    """Faster R-CNN's RPN writes the file that a Fast R-CNN trains and tests on."""
    done = script(
        *("make_proposals", f"--checkpoint={workdir}", "--splits=train[:6],val[:3]"),
        f"--output={tmp_path}/{{split}}.npz",
    )
    assert last_json(done)["val[:3]"]["images"] == 3
    judged = script("evaluate_proposals", f"--checkpoint=RPN={workdir}")
    both = script(
        *("evaluate_proposals", f"--checkpoint=RPN={workdir}", "--counts=20"),
        f"--proposals=file={tmp_path}/val.npz",
    )
    assert last_json(judged)["RPN"]["objects"] > 0
    by_name = last_json(both)
    np.testing.assert_allclose(by_name["RPN"]["AR@20"], by_name["file"]["AR@20"])
    config = tmp_path / "fast.py"
    config.write_text(
        "from tests.training import small\n"
        "def get_config():\n"
        "    c = small.config(total_steps=2, eval_every=2, checkpoint_every=2)\n"
        "    del c.model.anchors, c.model.rpn\n"
        "    c.algorithm = 'fast_rcnn'\n"
        "    c.model.external_proposals = True\n"
        f"    c.data.update(proposals='{tmp_path}/{{split}}.npz', max_proposals=20)\n"
        "    return c\n"
    )
    trained = script("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert last_json(trained).keys() >= {"AP", "AP50"}
    again = script("evaluate", f"--checkpoint={tmp_path / 'run'}")
    assert last_json(again)["AP"] == last_json(trained)["AP"]
