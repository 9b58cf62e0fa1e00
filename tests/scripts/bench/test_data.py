"""The benchmark of the input pipeline runs without a peer."""

import json

import cv2
import numpy as np

from tests.scripts.test_scripts import last_json, script


def test_both_ways_are_measured(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    entries = []
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"train2017/{i}.jpg"), np.zeros((40, 60, 3)))
        entries.append(dict(id=i, file_name=f"{i}.jpg", width=60, height=40))
    found = dict(images=entries, annotations=[], categories=[dict(id=1, name="a")])
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(found))
    done = script(
        *("bench/data", f"--root={tmp_path}", "--seconds=0.1", "--rounds=1"),
        *("--short_side=32", "--max_side=64", "--workers=1"),
    )
    result = last_json(done)
    assert result["images_per_second"].keys() == {"threads", "processes"}
    assert min(result["images_per_second"].values()) > 0
    assert result["speedup"] is None
