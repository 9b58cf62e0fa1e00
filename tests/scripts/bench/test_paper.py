"""The paper's tables as a user makes them, on small networks."""

import cv2
import numpy as np
import pytest

from tests.scripts.test_scripts import ROOT, last_json, script, workdir

__all__ = ["workdir"]  # a run of the small experiment

SWEEPS = """
from tests.training import small


def get_config():
    return small.config(total_steps=2, eval_every=2, checkpoint_every=2)


def sweep_counts():
    for count in (1, 20):
        yield {"proposals.eval.post_nms": count, "postprocess.score": 0.0}
"""


@pytest.mark.slow
def test_one_checkpoint_under_many_settings_is_each_of_them(workdir, tmp_path):
    config = tmp_path / "sweeps.py"
    config.write_text(SWEEPS)
    call = ("evaluate_sweep", f"--config={config}", f"--checkpoint={workdir}/best")
    unknown = script(*call, "--sweep=count", code=2)
    assert "sweep_counts" in unknown.stderr + unknown.stdout
    done = script(*call, "--sweep=counts")
    assert list((workdir / "sweep_counts" / "01").glob("detections_*.json"))
    rows = last_json(done)["rows"]
    assert [row["proposals.eval.post_nms"] for row in rows] == [1, 20]
    alone = script(
        *("evaluate", f"--checkpoint={workdir}", f"--output={tmp_path / 'alone'}"),
        *("--set=proposals.eval.post_nms=20", "--set=postprocess.score=0.0"),
    )
    assert {k: rows[1][k] for k in ("AP", "AP50", "VOC07")} == {
        k: last_json(alone)[k] for k in ("AP", "AP50", "VOC07")
    }


@pytest.mark.slow
def test_table_5_times_both_kinds_of_proposals(tmp_path):
    rng = np.random.default_rng(0)
    blobs = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (240, 180))
    cv2.imwrite(str(tmp_path / "photo.png"), blobs)
    done = script(
        *("bench/paper", f"--images={tmp_path}/*.png", "--models=zf"),
        "--arg=runlocal",
    )
    fast, faster = last_json(done)["rows"]
    assert (fast["by"], faster["by"]) == ("selective search", "RPN")
    assert faster["paper"] == [31, 3, 25, 59] and "31 / 3 / 25 / 59" in done.stdout
    for row in (fast, faster):
        assert min(row[k] for k in ("conv", "proposal", "region-wise", "total")) > 0
        assert 1 <= row["proposals"] <= 300
    assert fast["total"] > fast["proposal"]
    assert "10 ms" in done.stdout
    assert "no such file" in script(
        *("bench/paper", f"--images={ROOT}/none*.jpg"), code=2
    ).stderr  # fmt: skip
