"""The benchmark runs without torchvision too, and names what it should."""

import json

import jax.numpy as jnp
import numpy as np

from frcnn_jax.ops import boxes
from scripts.bench import suites, worker
from tests.scripts.test_scripts import last_json, script

NAMES = {
    *("infer_r50_fpn_800x1344", "infer_r50_fpn_480x640", "infer_mobilenet_v3_320"),
    *("train_r50_fpn_480x640_b2", "train_r50_fpn_480x640_b2_all"),
    *("roi_align_forward", "roi_align_forward_backward", "nms_2000", "match_100x268k"),
}


def test_an_entry_for_each_case(tmp_path):
    file = tmp_path / "ops.json"
    done = script(
        *("bench/speed", "--suite=ops", "--cases=^(match_1x|topk|no)", "--small"),
        *("--peer_python=", "--rounds=2", "--seconds=0.01", f"--json={file}"),
    )
    result = last_json(done)
    assert result == json.loads(file.read_text())
    assert "ours: preparing" in done.stderr and "round 1 of 2" in done.stderr
    names = [entry["name"] for entry in result["cases"]]
    assert names == ["match_1x268k", "topk_2000_of_268k"]
    for entry in result["cases"]:
        low, high = entry["spread"]["ours"]
        assert 0 < low <= entry["ours_ms"] <= high
        assert entry["peer_ms"] is None and entry["ratio"] is None
        assert entry["peak_mb"]["ours"] > 10 and "jax" in entry["versions"]
        assert f"| {entry['name']} |" in done.stdout


def test_names_that_programs_rely_on():
    assert {**suites.cpu_cases(), **suites.ops_cases()}.keys() >= NAMES
    for suite in (suites.gpu_cases(), suites.compile_cases()):
        assert all(case["kind"] for case in suite.values())


def test_an_unknown_case_and_a_missing_peer_are_refused():
    done = script("bench/speed", "--cases=nonsense", code=2)
    assert "--cases=nonsense: none of infer_r50_fpn_800x1344" in done.stderr
    done = script("bench/speed", "--peer_python=/nowhere/python", code=2)
    assert "`make peer`" in done.stderr


def test_scenes_are_what_they_say():
    for scene, low, high in (("all", 0.5, 1.0), ("none", 0.0, 0.0)):
        x = jnp.asarray(worker.crowd(200, scene)["boxes"])
        overlap = np.asarray(boxes.iou(x, x))[~np.eye(200, dtype=bool)]
        assert low <= overlap.min() and overlap.max() <= high
    assert len(set(worker.crowd(50, "equal")["scores"])) == 1
    assert len(worker.anchors((800, 1344))) == 268_569
