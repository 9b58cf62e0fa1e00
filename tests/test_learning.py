"""The demo learns: the README's first promise, on images that training never saw."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_demo_learns_shapes_from_scratch(tmp_path):
    def script(name, *args):
        command = [sys.executable, f"scripts/{name}.py", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    script(
        "train", "--config=experiments/shapes_demo.py", f"--workdir={tmp_path / 'run'}"
    )
    result = script(
        "evaluate", f"--checkpoint={tmp_path / 'run'}", "--split=test", "--pictures=2"
    )
    assert result["AP50"] >= 0.90
    assert result["AP"] >= 0.60
    annotations = json.loads((tmp_path / "run" / "annotations_val.json").read_text())
    assert len(annotations["images"]) == 200
