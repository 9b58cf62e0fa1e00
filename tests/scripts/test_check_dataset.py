"""The check as a user runs it: table, files, exit codes."""

import json

import cv2
import numpy as np

from tests.data.sources import test_voc
from tests.scripts.test_scripts import last_json, script

CONFIG = "--config=experiments/bccd_r50_fpn.py:runlocal"


def test_problems_end_in_exit_code_one(tmp_path):
    annotations = {
        "good": test_voc.xml(("cat", 1, 1, 30, 20)),
        "bad": test_voc.xml(("cat", 5, 5, 5, 5), ("dog", 3, 3, 40, 30)),
    }
    root = test_voc.make(tmp_path / "set", annotations)
    test_voc.make(tmp_path / "set", {"other": test_voc.xml()}, split="val")
    other = tmp_path / "set" / "JPEGImages" / "other.png"
    cv2.imwrite(str(other), np.full((40, 60, 3), 90, np.uint8))
    out = tmp_path / "out"
    args = ("check_dataset", CONFIG, f"--config.data.root={root}", f"--output={out}")
    done = script(*args, code=1)
    assert "bad.xml: dropped cat (5, 5, 5, 5): no area" in done.stdout
    assert "anchors reach" in done.stdout and "dog" in done.stdout
    result = last_json(done)
    assert result["problems"] == 2  # and the split without any box
    assert json.loads((out / "check.json").read_text()) == result["splits"]
    sheet = cv2.imread(str(out / "sheet.jpg"))
    assert sheet.shape == (360, 720, 3) and np.ptp(sheet) > 100
    # Mended, and the same images in both splits.
    annotations["bad"] = test_voc.xml(("dog", 3, 3, 40, 30))
    test_voc.make(tmp_path / "set", annotations)
    both = script(*args, "--config.data.eval_split=train")
    assert last_json(both)["problems"] == 0
    (tmp_path / "set" / "ImageSets" / "Main" / "val.txt").write_text("good\n")
    done = script(*args, code=1)
    assert "pictures are in both splits" in done.stdout


def test_what_cannot_be_loaded_is_exit_code_two(tmp_path):
    done = script("check_dataset", CONFIG, f"--config.data.root={tmp_path}", code=2)
    assert "cannot load the data: looked for a folder" in done.stdout
    assert last_json(done)["problems"] == 1
